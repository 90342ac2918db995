"""The settings that the runs of a plan must have, as their tag `settings`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from harness.config import Kind, SearchConfig
from harness.data.spec import DATASETS
from harness.experiment.describe import for_processes, inputs_to_keys, settings_tag
from harness.experiment.final import Trial
from harness.models.network import Definition
from harness.reproduction.figure_plan import FigurePlan, Training

MOST_PROCESSES = 64
"""A plan leaves the number of processes of a launch open, up to this."""
_PRECISIONS: tuple[Literal["no", "bf16", "fp16"], ...] = ("no", "bf16", "fp16")
"""Results of the precision "auto"."""


@dataclass(frozen=True)
class PlannedSettings:
    """Tags `settings` of the runs of a plan, derived from its settings alone."""

    plan: FigurePlan
    _tags: dict[tuple[str, ...], frozenset[str]] = field(default_factory=dict, init=False)

    @property
    def known(self) -> bool:
        """Whether the tags can be derived without data and libraries: network and data set are built in."""
        config = self.plan.scale.config
        return Definition.of(config.model).kind == "built-in" and config.data.name in DATASETS

    def runs(self, chain: str) -> Iterator[tuple[str, Training, bool]]:
        """Yield name, training and whether it is a level of the search, for each training and level of a chain."""
        trainings = self.plan.chains()[chain]
        yield from ((str(one), one, one.kind == "level") for one in trainings)
        if (curve := trainings[0].curve) is not None:
            for level in range(max(one.level for one in trainings) + 1):
                of_level = replace(trainings[0], curve=replace(curve, kind="level"), level=level, epochs=None)
                yield f"{chain}-L{level:02d}", of_level, True

    def tags(self, training: Training, data_digest: str, *, is_level: bool) -> frozenset[str]:
        """Return the tags that a run may have, one for each number of processes; empty if they are not known.

        Args:
            training: The run.
            data_digest: Digest of its data.
            is_level: Whether it is a level of a search, which has the search's settings.
        """
        config, unusual = self._config(training), {} if is_level else self._unusual(training)
        key = (config.alpha, str(config.final.epochs), data_digest, *map(str, sorted(unusual.items())))
        if key not in self._tags:
            self._tags[key] = self._of(config, data_digest, unusual) if self.known else frozenset()
        return self._tags[key]

    def _config(self, training: Training) -> SearchConfig:
        config, curve = self.plan.scale.config, training.curve
        config = config if curve is None else replace(config, alpha=curve.alpha)
        return config if training.epochs is None else replace(config, final=config.final.of_length(training.epochs))

    @staticmethod
    def _unusual(training: Training) -> dict[str, str]:
        seeds = (training.init_seed or 0, training.sgd_seed)
        return Trial(cast(Kind, training.kind), *seeds, initialisation=training.initialisation).unusual

    @staticmethod
    def _of(config: SearchConfig, data_digest: str, unusual: dict[str, str]) -> frozenset[str]:
        spec = DATASETS[config.data.name]
        network = Definition.of(config.model).sized(spec.num_classes, spec.channels, spec.image_size)
        precisions = _PRECISIONS if config.precision == "auto" else (config.precision,)
        tags = set()
        for chosen in (replace(config, precision=precision) for precision in precisions):
            determinants = inputs_to_keys(chosen, spec, data_digest, network, size=1)
            for size in range(1, MOST_PROCESSES + 1):
                tags.add(settings_tag(chosen, for_processes(determinants, chosen, size), unusual))
        return frozenset(tags)
