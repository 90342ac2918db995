"""Curves, comparisons and claims of the paper's figures and tables, and of further figures."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import cast, get_args

from harness.analysis.statistics import Expectation, check_margin, in_symbols
from harness.config import NETWORKS_OWN, AlphaDistribution, Kind, known

DENSE = "dense"
PAPER = "Oh, Baik & Lee, Find a Winning Sign: Sign Is All We Need to Win the Lottery, ICLR 2025"
GEM_MINERS_PAPER = "Sreenivasan et al., Rare Gems: Finding Lottery Tickets at Initialization, NeurIPS 2022"


@dataclass(frozen=True)
class Curve:
    """One line of an accuracy plot: the tickets of one method, used in one way.

    Args:
        method: Name of the pruning method.
        kind: Kind of final training (`harness.config.Kind`), or "level": the search's network at that level.
        initialisation: Scheme that draws θ_init, one of `harness.models.initialise.SCHEMES`.
        alpha: Distribution of AWS's α, one of `harness.config.AlphaDistribution`.
    """

    method: str
    kind: str
    initialisation: str = NETWORKS_OWN
    alpha: AlphaDistribution = "uniform"

    @property
    def use(self) -> str:
        """Kind and initialisation, without the method."""
        return self.kind if self.initialisation == NETWORKS_OWN else f"{self.kind} from {self.initialisation}"

    @property
    def finder(self) -> str:
        """Method, with the distribution of α unless it is the paper's; searches differ in nothing else."""
        return self.method if self.alpha == "uniform" else f"{self.method} α={self.alpha}"

    def __str__(self) -> str:
        return f"{self.use} ({self.finder})"

    @classmethod
    def parse(cls, text: str) -> Curve:
        """Parse a text such as `signed_mask (aws)` or `retrain (aws α=zero)`; raise ValueError for others."""
        found = re.fullmatch(r"(\w+)(?: from (\w+))? \((\w+)(?: α=(\w+))?\)", text)
        if found is None:
            raise ValueError(f"{text!r} is no curve; write 'signed_mask (aws)' or 'retrain (aws α=zero)'")
        from harness.pruning import METHODS  # loads torch, which the names of figures do not need

        kind, scheme, method, alpha = found.groups()
        known("kind", kind, [*get_args(Kind), "level"])
        known("method", method, list(METHODS))
        known("distribution of α", alpha or "uniform", list(get_args(AlphaDistribution)))
        return cls(method, kind, scheme or NETWORKS_OWN, cast(AlphaDistribution, alpha or "uniform"))


@dataclass(frozen=True)
class FigureClaim:
    """A claim of the paper about two curves, or a question; None is the dense network.

    It is tested once, by the difference of accuracy a − b averaged over all densities of the figure.
    """

    first: Curve | None
    second: Curve | None
    says: str
    expects: Expectation
    margin: float | None = None
    """Percentage points, for "equal" and "not_worse"; fixed before any run."""
    dense_at_ticket_cost: bool = False
    """Whether the dense network is trained for as many epochs as its deepest ticket costs."""

    def __post_init__(self) -> None:
        check_margin(self.expects, self.margin)

    @property
    def tested(self) -> str:
        """The claim as a formula, in percentage points."""
        return in_symbols(self.expects, self.margin)


@dataclass(frozen=True)
class Figure:
    """One figure or table."""

    name: str
    title: str
    subjects: dict[str, tuple[str, ...]]
    """Data set → networks; the first one is the default."""
    curves: tuple[Curve, ...]
    claims: tuple[FigureClaim, ...]
    stability: tuple[Curve, ...] = ()
    """Curves with SGD-noise stability."""
    connectivity: tuple[Curve, ...] = ()
    """Curves with linear mode connectivity to `retrain` of the same ticket."""
    initial_norm: tuple[str, ...] = ()
    """Methods whose tickets are compared with their copies with ψ_init, before any final training."""
    signed_init: tuple[str, ...] = ()
    """Methods whose tickets are compared with their signs on a fresh θ_init, before any final training."""
    source: str | None = PAPER
    """The paper with this figure or claim; None for our own."""
    widths: tuple[int, ...] = ()
    """Channels of the network's first stage, for a figure with several widths; empty for the network's own."""
    dense_at_ticket_cost: bool = False
    """Whether the dense network is also trained at the total cost of its deepest ticket, search included."""
    equal_weights: bool = False
    """Whether tickets of all methods have equal numbers of weights. A method that prunes the classifier is then
    searched at other densities than methods that keep it."""
    transfers: bool = False
    """Whether final trainings use another data set than the searches."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods of the curves, each once."""
        return tuple(dict.fromkeys(curve.method for curve in self.curves))

    @property
    def finders(self) -> tuple[str, ...]:
        """Methods of the curves, each once for every distribution of α."""
        return tuple(dict.fromkeys(curve.finder for curve in self.curves))


def _lines(method: str, *kinds: str) -> tuple[Curve, ...]:
    return tuple(Curve(method, kind) for kind in kinds)


_FOUR = ("resnet50_cifar", "mobilenet_v2_cifar", "shufflenet_cifar", "efficientnet_b0_cifar")
_RETRAIN, _SIGNED, _MASK, _NORM, _CONST, _RANDOM_SIGNS, _RANDOM_MASK = (
    "retrain",
    "signed_mask",
    "mask",
    "signed_mask_norm",
    "signed_mask_norm_const",
    "random_signs",
    "random_mask",
)
_LRR, _AWS, _LRR_FULL, _AWS_FULL, _IMP, _WR, _GEM_MINER = (
    "lrr",
    "aws",
    "lrr_full",
    "aws_full",
    "imp",
    "wr",
    "gem_miner",
)
_LEVEL = "level"
_CONSTANT = Curve(_AWS, _SIGNED, "constant")
_MARGIN = 1.0
"""Margin of "about equal", percentage points of accuracy."""


def _greater(first: Curve, second: Curve | None, says: str) -> FigureClaim:
    return FigureClaim(first, second, says, "greater")


def _less(first: Curve, second: Curve | None, says: str) -> FigureClaim:
    return FigureClaim(first, second, says, "less")


def _equal(first: Curve, second: Curve | None, says: str) -> FigureClaim:
    return FigureClaim(first, second, says, "equal", _MARGIN)


def _question(first: Curve, second: Curve | None, says: str) -> FigureClaim:
    return FigureClaim(first, second, says, "differs")


_REACHES = _equal(Curve(_AWS, _SIGNED), Curve(_AWS, _RETRAIN), "about equal: the sign is what the ticket needs")
_TICKETS = FigureClaim(Curve(_AWS, _RETRAIN), Curve(_LRR, _RETRAIN), "about equal or better", "not_worse", _MARGIN)
_AS_DENSE = FigureClaim(Curve(_AWS, _SIGNED), None, "about equal or better", "not_worse", _MARGIN)
_AGAINST_DENSE = _question(Curve(_AWS, _SIGNED), None, "our question: does it reach the dense network?")
_AGAINST_LONGER_DENSE = replace(
    _AGAINST_DENSE, says="our question: and with as many epochs as the deepest ticket costs?", dense_at_ticket_cost=True
)
"""The paper trains its dense network only as long as a final training."""
_SHORT = "about equal: short levels at a constant rate do"
_BEATS = _greater(Curve(_AWS, _SIGNED), Curve(_LRR, _SIGNED), "better")
_LAGS = _less(Curve(_LRR, _SIGNED), Curve(_LRR, _RETRAIN), "far worse")

FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure(
            name="fig2",
            title="Figure 2: initialising the magnitudes of an LRR ticket, with and without its norm parameters",
            subjects={"cifar100": _FOUR},
            curves=_lines(_LRR, _RETRAIN, _NORM, _SIGNED, _MASK),
            claims=(
                _equal(Curve(_LRR, _NORM), Curve(_LRR, _RETRAIN), "about equal: kept norm parameters rescue the sign"),
                _greater(Curve(_LRR, _NORM), Curve(_LRR, _SIGNED), "far better"),
                _equal(Curve(_LRR, _SIGNED), Curve(_LRR, _MASK), "about equal: the sign alone does not help"),
            ),
            stability=_lines(_LRR, _RETRAIN, _NORM, _SIGNED),
            connectivity=_lines(_LRR, _NORM, _SIGNED),
        ),
        Figure(
            name="fig3",
            title="Figure 3: final trainings from the tickets of LRR and AWS",
            subjects={"cifar100": _FOUR, "tiny_imagenet": _FOUR},
            curves=(*_lines(_LRR, _RETRAIN, _SIGNED, _MASK), *_lines(_AWS, _RETRAIN, _SIGNED)),
            claims=(
                _REACHES,
                _greater(Curve(_AWS, _SIGNED), Curve(_LRR, _MASK), "far better"),
                _BEATS,
                _LAGS,
                _equal(Curve(_LRR, _SIGNED), Curve(_LRR, _MASK), "about equal"),
                _TICKETS,
                _AS_DENSE,
                _AGAINST_LONGER_DENSE,
            ),
            stability=(Curve(_LRR, _RETRAIN), Curve(_LRR, _SIGNED), Curve(_AWS, _SIGNED)),
            connectivity=(Curve(_LRR, _SIGNED), Curve(_AWS, _SIGNED)),
            dense_at_ticket_cost=True,
        ),
        Figure(
            name="claims",
            title="Claims of the paper (Figures 1 to 3) side by side",
            subjects={"cifar100": _FOUR, "tiny_imagenet": _FOUR},
            curves=(*_lines(_LRR, _RETRAIN, _NORM, _SIGNED, _MASK), *_lines(_AWS, _RETRAIN, _SIGNED, _MASK)),
            claims=(
                _REACHES,
                _greater(Curve(_AWS, _SIGNED), Curve(_AWS, _MASK), "better: the sign matters beside the mask"),
                _BEATS,
                _greater(
                    Curve(_LRR, _NORM), Curve(_LRR, _SIGNED), "far better: kept norm parameters rescue LRR's sign"
                ),
                _LAGS,
                _equal(Curve(_LRR, _SIGNED), Curve(_LRR, _MASK), "about equal"),
                _TICKETS,
                _AS_DENSE,
                _AGAINST_LONGER_DENSE,
            ),
            stability=(Curve(_LRR, _RETRAIN), Curve(_LRR, _SIGNED), Curve(_AWS, _RETRAIN), Curve(_AWS, _SIGNED)),
            connectivity=(Curve(_LRR, _SIGNED), Curve(_AWS, _SIGNED)),
            initial_norm=(_LRR, _AWS),
            signed_init=(_LRR, _AWS),
            dense_at_ticket_cost=True,
        ),
        Figure(
            name="rewinding",
            title="Rewinding (section 3.1): IMP and weight rewinding against LRR",
            subjects={"cifar100": _FOUR},
            curves=(
                *_lines(_IMP, _LEVEL, _SIGNED),
                *_lines(_WR, _LEVEL, _SIGNED),
                *_lines(_LRR, _RETRAIN, _SIGNED),
            ),
            claims=(
                _less(Curve(_IMP, _LEVEL), Curve(_LRR, _RETRAIN), "worse: it loses the signs"),
                _less(Curve(_WR, _LEVEL), Curve(_LRR, _RETRAIN), "worse"),
                _question(Curve(_IMP, _SIGNED), Curve(_IMP, _LEVEL), "our question: do its signs reach its ticket?"),
                _question(Curve(_WR, _SIGNED), Curve(_WR, _LEVEL), "our question: do its signs reach its ticket?"),
            ),
        ),
        Figure(
            name="short_levels",
            title="Short levels (section 4.1): the warm-up and levels of LRR and AWS against whole trainings",
            subjects={"cifar100": _FOUR},
            curves=(
                *_lines(_LRR, _RETRAIN, _SIGNED),
                *_lines(_LRR_FULL, _LEVEL, _SIGNED),
                *_lines(_AWS, _RETRAIN, _SIGNED),
                *_lines(_AWS_FULL, _RETRAIN, _SIGNED),
            ),
            claims=(
                _equal(Curve(_LRR, _RETRAIN), Curve(_LRR_FULL, _LEVEL), _SHORT),
                _equal(Curve(_AWS, _RETRAIN), Curve(_AWS_FULL, _RETRAIN), _SHORT),
                _equal(Curve(_LRR, _SIGNED), Curve(_LRR_FULL, _SIGNED), _SHORT),
                _equal(Curve(_AWS, _SIGNED), Curve(_AWS_FULL, _SIGNED), _SHORT),
            ),
        ),
        Figure(
            name="fig4",
            title="Figure 4: AWS against Gem-Miner",
            subjects={"cifar100": ("resnet32",)},
            widths=(16, 32),
            curves=(*_lines(_AWS, _RETRAIN, _SIGNED), *_lines(_GEM_MINER, _LEVEL, _SIGNED)),
            claims=(
                _greater(Curve(_AWS, _SIGNED), Curve(_GEM_MINER, _LEVEL), "better"),
                _REACHES,
                _less(
                    Curve(_GEM_MINER, _SIGNED),
                    Curve(_GEM_MINER, _LEVEL),
                    "likely worse: its signed mask is for one initialisation",
                ),
                _AS_DENSE,
                _AGAINST_LONGER_DENSE,
            ),
            dense_at_ticket_cost=True,
        ),
        Figure(
            name="fig4_equal",
            title="AWS against Gem-Miner at equal numbers of weights, the classifier's included",
            subjects={"cifar100": ("resnet32",)},
            widths=(16, 32),
            curves=(*_lines(_AWS, _RETRAIN, _SIGNED), Curve(_GEM_MINER, _LEVEL)),
            claims=(_question(Curve(_AWS, _SIGNED), Curve(_GEM_MINER, _LEVEL), "is it better with as many weights?"),),
            source=None,
            equal_weights=True,
        ),
        Figure(
            name="gem_miner",
            title="Gem-Miner at its authors' densities",
            subjects={"cifar10": ("resnet20",)},
            curves=_lines(_GEM_MINER, _LEVEL),
            claims=(),
            source=GEM_MINERS_PAPER,
        ),
        Figure(
            name="fig5",
            title="Figure 5: transferring the signs of the norm parameters (Appendix A)",
            subjects={"cifar100": _FOUR},
            curves=_lines(_LRR, _RETRAIN, _SIGNED, _CONST),
            claims=(
                _equal(Curve(_LRR, _CONST), Curve(_LRR, _SIGNED), "about equal: the signs of the biases do not help"),
            ),
        ),
        Figure(
            name="fig6",
            title="Figure 6: a network in which LRR's sign transfers too (Appendix B)",
            subjects={"cifar100": ("vgg11_bn_cifar",)},
            curves=(*_lines(_LRR, _RETRAIN, _SIGNED), *_lines(_AWS, _RETRAIN, _SIGNED)),
            claims=(
                _equal(Curve(_LRR, _SIGNED), Curve(_LRR, _RETRAIN), "about equal"),
                _equal(Curve(_AWS, _SIGNED), Curve(_LRR, _SIGNED), "about equal"),
            ),
            stability=(Curve(_LRR, _RETRAIN), Curve(_LRR, _SIGNED), Curve(_AWS, _SIGNED)),
            connectivity=(Curve(_LRR, _SIGNED), Curve(_AWS, _SIGNED)),
        ),
        *(
            Figure(
                name=name,
                title=title,
                subjects={"imagenet": ("resnet50", "mobilenet_v2", "mlp_mixer")},
                curves=(*_lines(_LRR, _RETRAIN, _SIGNED), *_lines(_AWS, _RETRAIN, _SIGNED)),
                claims=(
                    _REACHES,
                    _BEATS,
                    _LAGS,
                    _AGAINST_DENSE,
                    _AGAINST_LONGER_DENSE,
                ),
                dense_at_ticket_cost=True,
            )
            for name, title in (
                ("table1", "Table 1: ImageNet"),
                ("table2", "Table 2: ImageNet, all densities"),
            )
        ),
        Figure(
            name="controls",
            title="Controls: random signs, constant magnitudes, random places",
            subjects={"cifar100": _FOUR},
            curves=(
                *_lines(_AWS, _RETRAIN, _SIGNED, _MASK),
                _CONSTANT,
                *_lines(_AWS, _RANDOM_SIGNS, _RANDOM_MASK),
            ),
            claims=(
                _question(Curve(_AWS, _SIGNED), Curve(_AWS, _RANDOM_SIGNS), "do these signs count, or would any?"),
                _question(
                    _CONSTANT, Curve(_AWS, _SIGNED), "does one magnitude for all weights of a tensor do as well?"
                ),
                _question(_CONSTANT, Curve(_AWS, _RETRAIN), "do signs alone reach the ticket?"),
                _question(
                    Curve(_AWS, _MASK), Curve(_AWS, _RANDOM_MASK), "do the places of the weights count without signs?"
                ),
            ),
            source=None,
        ),
        Figure(
            name="transfer",
            title="Transfer: tickets used on another data set than their own",
            subjects={"cifar100": _FOUR, "tiny_imagenet": _FOUR},
            curves=(*_lines(_AWS, _SIGNED, _MASK, _RANDOM_MASK), *_lines(_LRR, _SIGNED, _MASK)),
            claims=(
                _question(Curve(_AWS, _SIGNED), Curve(_AWS, _MASK), "do the signs of another data set count?"),
                _question(Curve(_LRR, _SIGNED), Curve(_LRR, _MASK), "do the signs of another data set count?"),
                _question(Curve(_AWS, _SIGNED), Curve(_LRR, _SIGNED), "are AWS's tickets better there than LRR's?"),
                _question(
                    Curve(_AWS, _MASK), Curve(_AWS, _RANDOM_MASK), "do the places of the weights count without signs?"
                ),
            ),
            source=None,
            transfers=True,
        ),
    )
}


def figure_named(name: str) -> Figure:
    """Return a figure or table by name; raise ValueError with the known names for others."""
    return FIGURES[known("figure", name, list(FIGURES))]
