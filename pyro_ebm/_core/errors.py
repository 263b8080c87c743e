"""Errors and warnings of the package: each message says what is wrong, got/expected, and the fix."""


class EnergyShapeError(ValueError):
    """An energy, or a value given to one, has the wrong shape."""


class EnergySupportError(ValueError):
    """Energies with different supports are combined, or a support does not fit the event shape."""


class GraphError(ValueError):
    """A factor graph, or what is wired into it, is malformed."""


class TreewidthError(RuntimeError):
    """An exact answer would need tables that are too large."""


class UnnormalizedError(RuntimeError):
    """A density without its log Z is used where log Z is not a constant."""


class UnnormalizedObservationError(UnnormalizedError):
    """An observed site has an unnormalised density whose log Z depends on what is being learned or sampled."""


class NormalizerError(RuntimeError):
    """A normaliser cannot give log Z here, or must not: see the more special errors."""


class StochasticPotentialError(NormalizerError):
    """Walkers that move would make the potential of MCMC another function at every call."""


class AnchorError(NormalizerError):
    """Frozen walkers are too far from the parameters at which they were frozen."""


class StaleWalkersError(NormalizerError):
    """A log Z is to be reported, and the parameters were changed since the walkers were refreshed."""


class LogNormalizerUncertainError(NormalizerError):
    """A log Z is to be reported, and its error is too large."""


class NoDensityError(NormalizerError):
    """A log density is asked of what supplies gradients or draws, and knows no log Z."""


class StepTooLargeError(NormalizerError):
    """The energy changed so much in one step that next to no walker is of use for the new one."""


class WalkersDivergedError(NormalizerError):
    """Walkers left the region where the model lives, or the energy there is not finite."""


class CompiledWalkersError(NormalizerError):
    """A program is compiled around walkers, which would freeze them in it."""


class SharedNormalizerError(ValueError):
    """One log Z is given to energies that each have their own."""


class TwoDensitiesError(RuntimeError):
    """Two densities are put on one value: the log Z of their product is not the sum of theirs."""


class GuideEnergyError(RuntimeError):
    """An energy without an exact log Z is in a guide, which has to know its own density."""


class EnumeratedContextError(UnnormalizedError):
    """A density without its log Z depends on a variable that is enumerated."""


class CoupledPlateError(RuntimeError):
    """An energy ties together elements of a plate that is subsampled."""


class BatchingError(RuntimeError):
    """A model cannot be run for many chains at once."""


class InitializationError(RuntimeError):
    """No starting point with a finite density and gradient was found."""


class NonFiniteError(ArithmeticError):
    """Data, or a log density at them or at noise, is not finite where a loss needs it to be."""


class SamplingWarning(UserWarning):
    """A run ended, but some chains need attention (divergences, stuck chains, saturated trees)."""


class ConvergenceWarning(UserWarning):
    """An iteration ended before its answer settled."""


class TrainingWarning(UserWarning):
    """A training goes on, with a lower learning rate or walkers that hardly move, or was interrupted."""
