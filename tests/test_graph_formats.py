"""Formats of networks: against the competitions' reference answers, known networks, round trips, malformed files."""

import csv
import gzip
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

from pyro_ebm import FactorGraph, FieldEnergy, GraphError, TableEnergy, read_graph, read_network, spin, write_graph
from tests.graph_cases import graphs

DATA = Path(__file__).parents[2] / "shared" / "data"
has_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the networks in ../shared/data")

# Those that take a second or less; benchmarks/uai2014.py runs all of them.
UAI = [
    "Alchemy_11",
    "CSP_12",
    "Grids_11",
    "Grids_13",
    "Pedigree_13",
    "Promedus_24",
    "Promedus_30",
    "Segmentation_11",
    "Segmentation_13",
    "grid10x10.f10",
]


@has_data
@pytest.mark.parametrize("name", UAI)
def test_uai_reference_answers(name):
    path = DATA / "uai2014" / f"{name}.uai"
    network = read_network(path, f"{path}.evid")
    reference = float(Path(f"{path}.PR").read_text().split()[1])
    assert abs(float(network.graph.log_partition()) / math.log(10) - reference) <= 1e-5 * abs(reference)
    expected = Path(f"{path}.MAR")
    if not expected.exists():
        return
    numbers = iter(expected.read_text().split()[1:])
    probabilities = network.probabilities(network.graph.marginals())
    assert int(next(numbers)) == len(probabilities)
    for each in probabilities:
        row = [float(next(numbers)) for _ in range(int(next(numbers)))]
        torch.testing.assert_close(each, torch.tensor(row, dtype=each.dtype), rtol=0, atol=5.001e-7)


@has_data
def test_every_uai_file_is_read():
    for row in csv.DictReader((DATA / "uai2014" / "INDEX.tsv").open(), delimiter="\t"):
        path = DATA / "uai2014" / f"{row['name']}.uai"
        network = read_network(path, f"{path}.evid")
        assert (len(network.names), len(network.observed)) == (int(row["n"]), int(row["nev"]))
        assert max(map(len, network.states)) == int(row["maxcard"])


@has_data
def test_libdai_reference_answers():
    path = DATA / "libdai" / "testfast.fg"
    network = read_network(path)
    reference = json.loads((DATA / "libdai" / "testfast_reference.json").read_text())
    assert float(network.graph.log_partition()) == pytest.approx(reference["exact_logZ"], abs=1e-9)
    for each, expected in zip(
        network.probabilities(network.graph.marginals()), reference["exact_marginals"], strict=True
    ):
        assert each.tolist() == pytest.approx(expected, abs=1e-9)
    mode = network.graph.mode()
    assert network.assignment(mode).tolist() == reference["argmax"]
    assert float(-network.graph(mode)) == pytest.approx(reference["max_logp"], abs=1e-9)
    assert float(read_graph(DATA / "libdai" / "alarm.fg").log_partition()) == pytest.approx(0, abs=1e-3)  # two digits


@has_data
@pytest.mark.parametrize("name", ["alarm", "asia", "cancer", "earthquake", "survey"])
def test_bayesian_networks_add_up_to_one(name):
    network = read_network(DATA / "bnlearn_bif" / f"{name}.bif.gz")
    assert tuple(network.graph.variables) == network.names
    assert float(network.graph.log_partition()) == pytest.approx(0, abs=1e-7)  # thirds have eight digits


def test_asia(tmp_path):
    """The chest clinic of Lauritzen and Spiegelhalter 1988, by summing over its 256 states."""
    network = read_network(_write(tmp_path, "asia.bif", ASIA), {"xray": "yes", "smoke": "no"})
    assert network.states[0] == ("yes", "no")

    def density(asia, tub, smoke, lung, bronc, either, xray, dysp):
        def of(state, probability):
            return probability if state == 0 else 1 - probability

        return (
            of(asia, 0.01)
            * of(tub, [0.05, 0.01][asia])
            * of(smoke, 0.5)
            * of(lung, [0.1, 0.01][smoke])
            * of(bronc, [0.6, 0.3][smoke])
            * of(either, 1.0 if tub == 0 or lung == 0 else 0.0)
            * of(xray, [0.98, 0.05][either])
            * of(dysp, [[0.9, 0.8], [0.7, 0.1]][bronc][either])
        )

    names = ["asia", "tub", "smoke", "lung", "bronc", "either", "xray", "dysp"]
    weights = {s: density(*s) for s in itertools.product((0, 1), repeat=8) if s[2] == 1 and s[6] == 0}
    total = sum(weights.values())
    assert float(network.graph.log_partition()) == pytest.approx(math.log(total), abs=1e-12)
    marginals = network.graph.marginals()
    probabilities = dict(zip(network.names, network.probabilities(marginals), strict=True))
    for number, name in enumerate(names):
        yes = sum(weight for state, weight in weights.items() if state[number] == 0) / total
        assert float(probabilities[name][0]) == pytest.approx(yes, abs=1e-12)
    best = max(weights, key=weights.__getitem__)
    mode = network.assignment(network.graph.mode())
    assert weights[tuple(mode[[network.names.index(name) for name in names]].tolist())] == pytest.approx(weights[best])


def test_evidence_by_number_by_file_and_by_condition_agree(tmp_path):
    path = _write(tmp_path, "mixed.uai", MIXED)
    whole = read_network(path)
    expected = whole.graph.condition(
        x2=(torch.tensor([0, 1]), torch.tensor([False, True])), x3=(torch.tensor([2, 0]), torch.tensor([True, False]))
    ).log_partition()
    given = [{1: 2, 2: 1}, {"1": "2", "2": 1}]
    given += [_write(tmp_path, f"{k}.evid", t) for k, t in enumerate(["2 1 2 2 1", "1\n2 1 2 2 1\n", "2\n1 2\n2 1"])]
    for evidence in given:
        network = read_network(path, evidence)
        torch.testing.assert_close(network.graph.log_partition(), expected)
        assert network.observed == {1: 2, 2: 1}
        assert network.probabilities(network.graph.marginals())[1].tolist() == [0, 0, 1]
        assert network.assignment(network.graph.sample((5,)))[:, 1:3].tolist() == [[2, 1]] * 5
    for nothing in ["0", "0\n", "", "1\n0\n"]:
        assert read_network(path, _write(tmp_path, "no.evid", nothing)).observed == {}


def test_places_and_values(tmp_path):
    network = read_network(_write(tmp_path, "mixed.uai", MIXED))
    assert network.places == (("x2", 0), ("x3", 0), ("x2", 1), ("x3", 1))
    states = torch.tensor(list(itertools.product(range(2), range(3), range(2), range(3))))
    values = network.values(states)
    assert (network.assignment(values) == states).all()
    weights = (-network.graph(values)).exp()
    assert weights[-1] == pytest.approx(2 * 6 * 0.5 * 3 * 12)  # of state (1, 2, 1, 2), factor by factor
    assert float(network.graph.log_partition()) == pytest.approx(float(weights.sum().log()))


def test_constants_and_zeros(tmp_path):
    network = read_network(_write(tmp_path, "constant.uai", "MARKOV 2 2 2 3 0 1 0 2 0 1 1 0.5 2 0 3 4 1 2 3 4"))
    assert float(network.graph.log_partition()) == pytest.approx(math.log(0.5 * 3 * 7))
    impossible = read_network(_write(tmp_path, "zero.uai", "MARKOV 1 2 1 1 0 2 0 0"))
    assert float(impossible.graph.log_partition()) == -math.inf
    assert float(read_graph(_write(tmp_path, "none.uai", "BAYES 2 3 3 0")).log_partition()) == pytest.approx(
        2 * math.log(3)
    )


def test_packed_files(tmp_path):
    plain, packed = tmp_path / "a.uai", tmp_path / "a.uai.gz"
    plain.write_text(MIXED)
    packed.write_bytes(gzip.compress(MIXED.encode()))
    assert read_graph(plain).log_partition() == read_graph(packed).log_partition()
    write_graph(read_graph(plain), tmp_path / "b.uai.gz")
    torch.testing.assert_close(read_graph(tmp_path / "b.uai.gz").log_partition(), read_graph(plain).log_partition())


def test_fg_is_sparse_and_its_first_variable_is_fastest(tmp_path):
    text = "# a comment\n2\n\n2\n7 3\n2 3\n3\n0 1.5\n1 2.5 # another\n5 4\n\n1\n3\n3\n3\n0 1\n1 1\n2 1\n"
    network = read_network(_write(tmp_path, "sparse.fg", text))
    assert network.names == ("3", "7")
    weights = torch.zeros(3, 2, dtype=torch.float64)
    weights[0, 0], weights[0, 1], weights[2, 1] = 1.5, 2.5, 4
    states = torch.cartesian_prod(torch.arange(3), torch.arange(2))
    torch.testing.assert_close((-network.graph(network.values(states))).exp(), weights.flatten())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs(batch_shape=()))
def test_round_trip(tmp_path_factory, g):
    path = tmp_path_factory.mktemp("round") / "graph.uai"
    write_graph(g, path)
    network = read_network(path)
    tables = g.log_tables()
    assert [len(states) for states in network.states] == list(tables.num_states)
    torch.testing.assert_close(network.graph.log_partition(), g.log_partition(), rtol=1e-12, atol=1e-12)
    for each, expected in zip(network.probabilities(network.graph.marginals()), g.marginals().singles, strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-12)


def test_what_cannot_be_written(tmp_path):
    g = FactorGraph()
    x = g.variable("x", support=spin, shape=(2,))
    g.factor(FieldEnergy(torch.ones(3, 2)), x[:])
    with pytest.raises(GraphError, match="batch shape"):
        write_graph(g, tmp_path / "batch.uai")
    for size in (1e3, -1e3):
        g = FactorGraph()
        g.factor(TableEnergy(torch.tensor([0.0, size])), g.variable("x", num_states=2))
        with pytest.raises(GraphError, match="floats"):
            write_graph(g, tmp_path / "large.uai")
    with pytest.raises(GraphError, match=r"expected \.uai"):
        write_graph(g, tmp_path / "graph.bif")
    g = FactorGraph()
    g.variable("scale", support=torch.distributions.constraints.positive)
    with pytest.raises(GraphError, match="continuous"):
        write_graph(g, tmp_path / "graph.uai")


MIXED = """MARKOV
4
2 3 2 3
5
1 0
2 0 1
2 2 1
2 1 2
3 3 1 0

2
 1 2
6
 1 2 3
 4 5 6
6 .1 .2 .3 .4 .45 0.5
6 1 1 2 2
  3 3
18 1 1 1 1 1 1
   2 2 2 2 2 2
   7 8 9 10 11 12
"""

ASIA = """
network unknown { property author = "someone; }";
}
/* states
   first */
variable asia { type discrete [ 2 ] { yes, no }; property "position = (1, 2)"; }
variable tub { type discrete[2]{yes,no}; }
variable "smoke" { type discrete [ 2 ] { "yes" no }; }
variable lung { type discrete [ 2 ] { yes, no }; }
variable bronc { type discrete [ 2 ] { yes, no }; }
variable either { type discrete [ 2 ] { yes, no }; }
variable dysp { type discrete [ 2 ] { yes, no }; }
variable xray { type discrete [ 2 ] { yes, no }; }
probability ( asia ) { table 0.01, 0.99; }
probability ( tub | asia ) { (yes) 0.05, 0.95; (no) 0.01, 0.99; } // rare
probability ( smoke ) { default 0.5, 0.5; }
probability ( lung | smoke ) { table 0.1, 0.01, 0.9, 0.99; }
probability ( bronc | smoke ) { (no) 0.3, 0.7; (yes) 0.6 0.4; }
probability ( either | lung, tub ) { (no, no) 0.0, 1.0; default 1, 0; }
probability ( xray | either ) { (yes) 0.98, 0.02; (no) 0.05, 0.95; property x; }
probability ( dysp | bronc, either ) {
  (yes, yes) 0.9, 0.1;
  (no, yes) 0.7, 0.3;
  (yes, no) 0.8, 0.2;
  (no, no) 0.1, 0.9;
}
"""

VARIABLE = "variable a { type discrete [ 2 ] { yes, no }; }\n"
FG = "1\n\n2\n0 1\n2 2\n1\n"
MALFORMED = {
    "another format": ("a.uai", "FACTOR 1 2 0", 'line 1: got "FACTOR", expected "MARKOV" or "BAYES"'),
    "empty": ("a.uai", "", 'line 1: got the end of the file, expected "MARKOV" or "BAYES"'),
    "no variables": ("a.uai", "MARKOV\n0\n", 'line 2: got "0", expected the number of variables, an integer of at'),
    "no states": ("a.uai", "MARKOV\n1\n0", 'line 3: got "0", expected a number of states'),
    "a word for a number": ("a.uai", "MARKOV\n1\ntwo", 'line 3: got "two", expected a number of states'),
    "a fraction": ("a.uai", "MARKOV\n1.5", 'line 2: got "1.5", expected the number of variables'),
    "too many in a scope": ("a.uai", "MARKOV 1 2 1\n2 0 1", 'line 2: got "2", expected the number of a factor'),
    "an unknown variable": (
        "a.uai",
        "MARKOV 1 2 1\n1 1",
        'line 2: got "1", expected a variable, an integer from',
    ),
    "a variable twice": ("a.uai", "MARKOV 2 2 2 1\n2 1 1", 'line 2: got "1", expected each variable once'),
    "a table too short": ("a.uai", "MARKOV 1 2 1 1 0\n3\n1 2 3", 'line 2: got "3", expected the number of weights'),
    "a table that ends": ("a.uai", "MARKOV 1 2 1 1 0\n2\n1", "line 3: got the end of the file, expected a weight"),
    "a negative weight": ("a.uai", "MARKOV 1 2 1 1 0\n2\n1 -1", 'line 3: got "-1", expected a weight, a finite number'),
    "a weight that is no number": ("a.uai", "MARKOV 1 2 1 1 0\n2\nnan 1", 'line 3: got "nan", expected a weight'),
    "an infinite weight": ("a.uai", "MARKOV 1 2 1 1 0\n2\n1 inf", 'line 3: got "inf", expected a weight'),
    "more at the end": ("a.uai", "MARKOV 1 2 1 1 0\n2\n1 1\n7", 'line 4: got "7", expected the end of the file'),
    "fg, variable twice": ("a.fg", "1\n2\n0 0\n2 2\n0", 'line 3: got "0", expected each variable once'),
    "fg, other states": ("a.fg", "2\n1\n0\n2\n0\n1\n0\n3\n0", 'line 8: got "3", expected 2 states of variable 0'),
    "fg, outside": ("a.fg", FG + "4 1.0", 'line 7: got "4", expected the position of a weight, an integer from 0 to 3'),
    "fg, too many": (
        "a.fg",
        "1\n1\n0\n2\n3",
        'line 5: got "3", expected the number of weights, an integer',
    ),
    "fg, a place twice": ("a.fg", "1\n1\n0\n2\n2\n0 1\n0 1", 'line 7: got "0", expected each position once'),
    "fg, ends": ("a.fg", FG, "line 6: got the end of the file, expected the position of a weight"),
    "fg, more factors": ("a.fg", "0\n1", 'line 2: got "1", expected the end of the file'),
    "fg, negative": ("a.fg", FG + "0 -1", 'line 7: got "-1", expected a weight'),
    "bif, a word": ("a.bif", "node a { }", 'line 1: got "node", expected "network" or "variable" or "probability"'),
    "bif, no variables": ("a.bif", "network x { }", "expected a variable or more"),
    "bif, variable twice": ("a.bif", VARIABLE * 2, 'line 2: got "a", expected each variable once'),
    "bif, fewer states": ("a.bif", "variable a { type discrete [ 3 ] { yes, no }; }", "expected 3 states"),
    "bif, no type": ("a.bif", "variable a { }", 'line 1: got "}", expected "type discrete"'),
    "bif, no brace": ("a.bif", "variable a type", 'line 1: got "type", expected "{"'),
    "bif, a brace for a name": ("a.bif", "variable { }", 'line 1: got "{", expected a variable\'s name'),
    "bif, unknown": ("a.bif", "\nprobability ( b )", 'line 2: got "b", expected a variable that is declared'),
    "bif, no table": ("a.bif", VARIABLE, "got no probability ( a )"),
    "bif, two tables": ("a.bif", VARIABLE + "probability ( a ) { table 1, 0; }" * 2, "once"),
    "bif, own parent": ("a.bif", VARIABLE + "probability ( a | a ) { }", 'line 2: got "a", expected each parent once'),
    "bif, short table": ("a.bif", VARIABLE + "probability ( a ) { table 1; }", "expected 2 probabilities before it"),
    "bif, no sum": ("a.bif", VARIABLE + "probability ( a ) { table 0.5, 0.4; }", "add up to 1, and not ones that add"),
    "bif, nothing": ("a.bif", VARIABLE + "probability ( a ) { }", "add up to 1, and not none"),
    "bif, wrong parents": ("a.bif", VARIABLE + "probability ( a ) { (yes) 1, 0; }", "expected 0 states in front"),
    "bif, ends": ("a.bif", VARIABLE + "probability ( a ) { table 1,", "line 2: got the end of the file"),
    "bif, ends in a list": ("a.bif", "variable a { type discrete [ 2 ] { yes,", "line 1: got the end of the file"),
    "not packed": ("a.uai.gz", "MARKOV", "cannot be read"),
    "an unknown ending": ("a.txt", "", 'got a name that ends in ".txt", expected .uai, .fg, .bif, or with .gz'),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files(case, tmp_path):
    name, text, message = MALFORMED[case]
    with pytest.raises(GraphError) as caught:
        read_network(_write(tmp_path, name, text))
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


BAD_EVIDENCE = {
    "a variable": ({9: 0}, 'got the variable "9", expected one of 0, 1, 2, 3'),
    "a state": ({0: 2}, 'got the state "2" of variable "0", expected one of 0, 1'),
    "all": ({0: 0, 1: 0, 2: 0, 3: 0}, "got 4 variables observed of 4"),
    "too few words": ("2 1 2 2", 'the end of the file, expected a state'),
    "two samples": ("2\n1 0 0\n1 0 1", "in one sample"),
    "twice": ("2 1 0 1 0", 'got "1", expected each variable once'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_EVIDENCE)
def test_bad_evidence(case, tmp_path):
    evidence, message = BAD_EVIDENCE[case]
    if isinstance(evidence, str):
        evidence = _write(tmp_path, "a.evid", evidence)
    with pytest.raises(GraphError, match=message):
        read_network(_write(tmp_path, "mixed.uai", MIXED), evidence)


def _write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path
