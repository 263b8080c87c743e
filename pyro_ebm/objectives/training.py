"""`Training`: a loop over minibatches that minimises an objective."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from pyro_ebm._core.errors import NonFiniteError, StepTooLargeError, TrainingWarning
from pyro_ebm._core.interruption import deferred_interruption
from pyro_ebm._core.protocols import HasState
from pyro_ebm._core.randomness import seeded, seeded_generator
from pyro_ebm._core.warn import warn
from pyro_ebm.energies.from_distribution import tensors_of
from pyro_ebm.objectives.batches import Batch, Data, batches_of
from pyro_ebm.objectives.fitted import Fitted
from pyro_ebm.objectives.objective import Report

Loss = Callable[..., tuple[Tensor, Report]]
Callback = Callable[["Training"], object]

# What objectives fit to the data (a noise, a scale) is fitted to at most so many.
_FITTED_TO = 10_000
# The progress bar shows means over so many steps.
_SHOWN = 50
_SHOWN_NAMES = {"loss": "loss", "energy_gap": "gap", "ess": "ESS", "log_partition": "log Z"}


class Training:
    """Minimise an objective over minibatches: `step()`, or `run()` to the end.

    Adam with a learning rate that warms up linearly and falls to zero as a cosine; gradients clipped by their norm; an
    exponential average of the parameters. Everything random in a step, the user's network included, follows a generator
    of the training's own, so that a run is deterministic, whatever happens to torch's global one. Its state is all in
    `state_dict`: an interrupted run goes on bit for bit.

    If a step was so large that walkers lose the density (`StepTooLargeError`), half of it is taken back and the
    learning rate is halved from then on, once, with a warning.

    Args:
        distribution: anything that the objective takes; its `nn.Parameter`s are trained, those of its modules included.
        objective: `objective(distribution, batch)` to a loss and a report. If it is a module, what it learns is trained
            too, and what it fits to data is fitted to ten thousand of them.
        data: a tensor `(N, *event)`; a tuple of tensors with the same N, for an objective that takes tuples; or a torch
            `Dataset` or `DataLoader` of such.
        num_steps: in all.
        batch_size: of minibatches of tensors and datasets.
        learning_rate: its highest value.
        warmup_steps: until it is reached.
        max_gradient_norm: gradients are clipped to it.
        averaged_share: the parameters are averaged over the last such share of the steps, about.
        optimizer: `optimizer(parameters, lr=...)`; Adam by default.
        parameters: more to be trained, for a `distribution` that is a callable.
        generator: seeds the training's own; torch's global one by default.

    Attributes:
        num_done: the steps done.
        history: what was reported, a list for each name with a number for each step.

    Raises:
        ValueError: if there is nothing to train, or an option is out of range.

    References:
        Kingma and Ba 2015, Adam: a method for stochastic optimization.
        Loshchilov and Hutter 2017, SGDR: stochastic gradient descent with warm restarts.
        Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging.

    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy, ScoreMatching
    >>> precision = nn.Parameter(torch.eye(2))
    >>> distribution = EnergyDistribution(QuadraticEnergy(precision))
    >>> data = torch.randn(1000, 2, generator=Generator().manual_seed(0))
    >>> training = Training(distribution, ScoreMatching(), data, num_steps=20)
    >>> for _ in range(20):
    ...     report = training.step()
    >>> training.num_done, len(training.history["loss"])
    (20, 20)
    """

    def __init__(
        self,
        distribution: Any,
        objective: Loss,
        data: Data,
        *,
        num_steps: int = 1700,
        batch_size: int = 1024,
        learning_rate: float = 3e-3,
        warmup_steps: int = 100,
        max_gradient_norm: float = 10.0,
        averaged_share: float = 0.1,
        optimizer: Callable[..., Optimizer] = Adam,
        parameters: Iterable[nn.Parameter] = (),
        generator: Generator | None = None,
    ) -> None:
        if num_steps < 1 or batch_size < 1 or not learning_rate > 0 or not 0 < averaged_share <= 1:
            raise ValueError(
                f"Training: got num_steps={num_steps}, batch_size={batch_size}, learning_rate={learning_rate} and "
                f"averaged_share={averaged_share}, expected positive ones, and a share of at most 1."
            )
        self.distribution, self.objective = distribution, objective
        self.num_steps, self.learning_rate, self.warmup_steps = num_steps, learning_rate, warmup_steps
        self.max_gradient_norm = max_gradient_norm
        self.num_done = 0
        self.history: dict[str, list[float]] = {}
        self._modules = _modules_of(distribution)
        if isinstance(objective, nn.Module):
            self._modules["objective"] = objective
        self._parameters = nn.ParameterList(_trainable(distribution, self._modules, parameters))
        self._decay = 1 - 1 / max(1.0, averaged_share * num_steps)
        self._average = AveragedModel(self._parameters, avg_fn=self._averaged)
        self._optimizer = optimizer(list(self._parameters), lr=learning_rate)
        self._generator = seeded_generator(torch.device("cpu"), generator)
        self._batches = batches_of(data, batch_size)
        self._before: list[Tensor] = []
        self._halved = False

    # Training

    def step(self) -> Report:
        """One step on the next minibatch.

        Returns:
            The objective's report, and the norm of the gradient before it is clipped.

        Raises:
            StepTooLargeError: if walkers lose the density even so.
            NonFiniteError: if the loss or a gradient is not finite.
        """
        parameters = list(self._parameters)
        with seeded(self._generator, parameters[0].device), torch.enable_grad():
            if self.num_done == 0:
                self._fit_objective()
            loss, report = self._loss(self._like(self._batches.following()))
            self._optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
            if not bool(norm.isfinite()):
                raise NonFiniteError(
                    f"Training: got a gradient of norm {float(norm)} after {self.num_done} steps, though the loss is "
                    "finite. Lower the learning rate, or look for a root or a logarithm whose argument nears zero."
                )
            for group in self._optimizer.param_groups:
                group["lr"] = self.current_learning_rate
            self._before = [each.detach().clone() for each in parameters]
            self._optimizer.step()
            self._average.update_parameters(self._parameters)
        self.num_done += 1
        report = {**report, "gradient_norm": norm.detach()}
        for name, value in report.items():
            self.history.setdefault(name, []).append(float(value))
        return report

    def run(
        self,
        *,
        callbacks: Sequence[Callback] = (),
        save_to: str | os.PathLike[str] | None = None,
        save_every: int = 1000,
        progress_bar: bool = True,
    ) -> None:
        """Step to the end.

        Ctrl-C ends the run after the step that it is at, with a warning: nothing is lost. A second one breaks in.

        Args:
            callbacks: each is called with the training after every step; one that returns `True` ends the run.
            save_to: a file for the state, written every `save_every` steps and at the end.
            save_every: between savings. `load(path)` and `run` go on from the last one.
            progress_bar: whether to show one.
        """
        stopped = False
        with (
            deferred_interruption() as interruption,
            tqdm(total=self.num_steps, initial=self.num_done, desc="Fit", disable=not progress_bar) as bar,
        ):
            while self.num_done < self.num_steps and not stopped:
                self.step()
                answers = [callback(self) for callback in callbacks]
                stopped = interruption.asked or any(answer is True for answer in answers)
                bar.update()
                if not bar.disable and self.num_done % 10 == 0:
                    bar.set_postfix(self._shown(), refresh=False)
                if save_to is not None and self.num_done % save_every == 0:
                    self.save(save_to)
        if interruption.asked:
            ways = "resume from it" if save_to is not None else "go on by run(); give save_to to keep it in a file"
            warn(
                f"Training: interrupted after {self.num_done} of {self.num_steps} steps, which are kept: {ways}.",
                TrainingWarning,
            )
        if save_to is not None:
            self.save(save_to)

    @property
    def current_learning_rate(self) -> float:
        """That of the next step."""
        warm = min(1.0, (self.num_done + 1) / max(1, self.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.num_done / self.num_steps)))
        return self.learning_rate * warm * cosine * (0.5 if self._halved else 1.0)

    def _fit_objective(self) -> None:
        """Let the objective fit what it fits to its first data to many of them."""
        objective = self._modules.get("objective")
        if objective is not None and any(isinstance(m, Fitted) and not m.is_fitted for m in objective.modules()):
            with torch.no_grad():
                self.objective(self.distribution, self._like(self._batches.first(_FITTED_TO)))

    def _loss(self, batch: Batch) -> tuple[Tensor, Report]:
        try:
            return self.objective(self.distribution, batch)
        except StepTooLargeError:
            if self._halved or not self._before:
                raise
            self._halved = True
            warn(
                f"Training: step {self.num_done} was too large for the walkers. Half of it was taken back, and the "
                f"learning rate is halved from now on. To avoid this, use learning_rate={self.learning_rate / 2:g}.",
                TrainingWarning,
            )
            with torch.no_grad():
                for parameter, before in zip(self._parameters, self._before, strict=True):
                    parameter.lerp_(before, 0.5)
            return self.objective(self.distribution, batch)

    def _like(self, batch: Batch) -> Batch:
        """A batch on the parameters' device, and floats with their dtype."""
        like = next(iter(self._parameters))

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(like) if tensor.is_floating_point() else tensor.to(like.device)

        return moved(batch) if isinstance(batch, Tensor) else tuple(map(moved, batch))

    def _shown(self) -> dict[str, str]:
        return {
            shown: f"{sum(self.history[name][-_SHOWN:]) / len(self.history[name][-_SHOWN:]):.3f}"
            for name, shown in _SHOWN_NAMES.items()
            if name in self.history
        }

    # The averages

    def _averaged(self, average: Tensor, present: Tensor, count: Tensor | int) -> Tensor:
        number = float(count)
        return torch.lerp(present, average, min(self._decay, number / (number + 10)))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the distribution have the averaged parameters meanwhile."""
        present = [each.detach().clone() for each in self._parameters]
        self.use_average()
        try:
            yield
        finally:
            self._set(present)

    def use_average(self, share: float = 1.0) -> None:
        """Give the distribution the averaged parameters, for good; or move it towards them by a share of the way."""
        if self.num_done == 0:
            return
        averages = cast(nn.ParameterList, self._average.module)
        self._set([torch.lerp(now, mean, share) for now, mean in zip(self._parameters, averages, strict=True)])

    @torch.no_grad()
    def _set(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """All that goes on: parameters, optimiser, averages, walkers, minibatches, generators and the history."""
        return {
            "num_done": self.num_done,
            "num_steps": self.num_steps,
            "parameters": [each.detach().clone() for each in self._parameters],
            "before": self._before,
            "halved": self._halved,
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.state_dict(),
            "batches": self._batches.state_dict(),
            "generator": self._generator.get_state(),
            "normalizer": None if self._normalizer is None else self._normalizer.state_dict(),
            "history": {name: torch.tensor(values, dtype=torch.double) for name, values in self.history.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` saved, in a training that was made in the same way.

        Raises:
            ValueError: if it was made for another number of steps.
        """
        if state["num_steps"] != self.num_steps:
            raise ValueError(
                f"Training: got the state of a training of {state['num_steps']} steps, expected {self.num_steps}: the "
                "learning rate depends on it. Give num_steps as it was."
            )
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
        self._set(state["parameters"])
        self.num_done, self._before, self._halved = state["num_done"], state["before"], state["halved"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._average.load_state_dict(state["average"])
        self._batches.load_state_dict(state["batches"])
        self._generator.set_state(state["generator"])
        if self._normalizer is not None:
            self._normalizer.load_state_dict(state["normalizer"])
        self.history = {name: values.tolist() for name, values in state["history"].items()}

    @property
    def _normalizer(self) -> HasState | None:
        """What supplies log Z, if it changes while it does."""
        normalizer = getattr(self.distribution, "log_normalizer", None)
        return normalizer if isinstance(normalizer, HasState) else None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, in place of the last one; a crash leaves the one or the other."""
        partial = Path(path).with_name(Path(path).name + ".partial")
        torch.save(self.state_dict(), partial)
        os.replace(partial, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restore what `save` wrote."""
        self.load_state_dict(torch.load(path, weights_only=True, map_location=next(iter(self._parameters)).device))


def _modules_of(distribution: Any) -> dict[str, nn.Module]:
    """The modules that a distribution is made of, such as its energy; or a callable that is one."""
    if isinstance(distribution, nn.Module):
        return {"distribution": distribution}
    attributes = vars(distribution) if hasattr(distribution, "__dict__") else {}
    return {name: value for name, value in attributes.items() if isinstance(value, nn.Module)}


def _trainable(
    distribution: Any, modules: dict[str, nn.Module], parameters: Iterable[nn.Parameter]
) -> list[nn.Parameter]:
    """Every parameter once, in order.

    Raises:
        ValueError: if there is none.
    """
    tensors: list[Tensor] = tensors_of(distribution) if hasattr(distribution, "log_prob") else []
    for module in modules.values():
        tensors += module.parameters()
    tensors += parameters
    found = {id(each): each for each in tensors if isinstance(each, nn.Parameter) and each.requires_grad}
    if not found:
        raise ValueError(
            f"Training: got {type(distribution).__name__} without an nn.Parameter that requires a gradient, expected "
            "something to train. Make the energy's tensors nn.Parameters; for a callable, give parameters=..."
        )
    return list(found.values())
