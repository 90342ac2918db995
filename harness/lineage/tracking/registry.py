"""Every level's model as a version of a registered model named for method, data and network, with a telling alias.

`models:/aws-digits-resnet20@s1-L07` is level 7 of the search with both seeds 1; version numbers only count.
"""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING

from harness.common.escape import for_markdown
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.tracking.server import KEY_TAG, Server

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
_VERSION_TAGS = ("level", "init_seed", "sgd_seed")
_VERSIONS_TAG = "mlflow.modelVersions"
_LOGGED_MODEL = re.compile(r"models:/(m-[0-9a-f]+)")


def model_name(record: LineageRecord) -> str:
    """Return the name of the registered model a level is a version of, e.g. aws-digits-resnet20."""
    tags = record.tags
    words = (tags.get("method", "?"), tags.get("data", "?"), tags.get("network", tags.get("model", "?")))
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(words))


def alias_of(record: LineageRecord) -> str:
    """Return the alias that says which level of which search: s1-L07, or i1-s2-L07 where the seeds differ."""
    init_seed, sgd_seed = record.tags.get("init_seed", "?"), record.tags.get("sgd_seed", "?")
    seeds = f"s{sgd_seed}" if init_seed == sgd_seed else f"i{init_seed}-s{sgd_seed}"
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{seeds}-L{record.tags.get('level', '00')}")


def is_model_uri(text: str) -> bool:
    """Whether `text` names a model version, an alias or a logged model."""
    return text.startswith("models:/")


class Registry:
    """The registered models of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._created: set[str] = set()

    def register(self, run_id: str, model: LoggedModel, record: LineageRecord) -> None:
        """Make a level's logged model a version, once, and give it its alias."""
        name = model_name(record)
        self._create(name, record)
        version = self._version(name, run_id, model, record)
        self._give_alias(name, version, record)

    def run_id(self, uri: str) -> str:
        """Return the run behind a `models:/` URI; LookupError, naming what there is, when there is none."""
        logged = _LOGGED_MODEL.fullmatch(uri)
        if logged:
            return self._run_of_logged_model(logged[1])
        parts = _URI.fullmatch(uri)
        if parts is None:
            raise LookupError(f"{uri!r} is no model: give models:/NAME@ALIAS, models:/NAME/VERSION or a run ID")
        registered = self._registered(parts["name"])
        version = self._find_version(registered, parts["version"], parts["alias"], uri)
        if not version.run_id:
            raise LookupError(f"{uri} has no run: it was not registered by this harness")
        return str(version.run_id)

    def _create(self, name: str, record: LineageRecord) -> None:
        from mlflow.exceptions import MlflowException

        if name in self._created:
            return
        tags = record.tags
        network = tags.get("network", tags.get("model", "?"))
        description = (
            f"Signed masks that {tags.get('method')} found in {network} on {tags.get('data')}, a version for each "
            "level of each search. Aliases say which: s1-L07 is level 7 of the search with both seeds 1, i1-s2-L07 of "
            "init_seed 1 and sgd_seed 2; version numbers only count."
        )
        try:
            self.server.client().create_registered_model(name, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._created.add(name)

    def _version(self, name: str, run_id: str, model: LoggedModel, record: LineageRecord) -> str:
        client = self.server.client()
        found = [one for one in client.search_model_versions(f"run_id = '{run_id}'") if one.name == name]
        if found:
            version = str(found[0].version)
        else:
            # Without a server, MLflow looks the model up in its global store, whatever the client's is.
            remote = self.server.is_remote
            source = f"models:/{model.model_id}" if remote else model.artifact_location
            tags = {KEY_TAG: record.key}
            tags |= {word: record.tags[word] for word in _VERSION_TAGS if word in record.tags}
            if (density := record.last_metrics().get("density")) is not None:
                tags["density"] = f"{density:.3f}"
            # A server believes such a source only beside the ID itself.
            model_id = model.model_id if remote else None
            description = f'{for_markdown(record.name)}: `harness.load_signed_mask("{run_id}")`'
            made = client.create_model_version(
                name, source, run_id=run_id, tags=tags, description=description, model_id=model_id
            )
            version = str(made.version)
        if _VERSIONS_TAG not in model.tags:  # what the pages of the model and of the run show
            versions = json.dumps([{"name": name, "version": version}])
            client.set_logged_model_tags(model.model_id, {_VERSIONS_TAG: versions})
        return version

    def _give_alias(self, name: str, version: str, record: LineageRecord) -> None:
        """Give the version its alias; one that another search has stays there, and this one's gets a suffix."""
        client = self.server.client()
        alias = alias_of(record)
        owner = self._alias_owner(name, alias)
        if owner is not None and owner.version != version and self._is_another(owner, record):
            alias = f"{alias}-{record.tags.get('settings', record.key)[:6]}"
            owner = self._alias_owner(name, alias)
        if owner is None or str(owner.version) != version:
            client.set_registered_model_alias(name, alias, version)

    def _alias_owner(self, name: str, alias: str) -> ModelVersion | None:
        from mlflow.exceptions import MlflowException

        try:
            return self.server.client().get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _is_another(self, owner: ModelVersion, record: LineageRecord) -> bool:
        """Whether a version is that of another result whose run still stands."""
        run = self.server.get_run(owner.run_id) if owner.run_id else None
        return run is not None and run.data.tags.get(KEY_TAG) != record.key

    def _registered(self, name: str) -> RegisteredModel:
        from mlflow.exceptions import MlflowException

        client = self.server.client()
        try:
            return client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        names = [model.name for model in client.search_registered_models(max_results=100)]
        raise LookupError(f"no registered model {name!r}{_known(name, names)}")

    def _find_version(self, model: RegisteredModel, version: str | None, alias: str | None, uri: str) -> ModelVersion:
        from mlflow.exceptions import MlflowException

        if alias is not None and alias not in model.aliases:
            raise LookupError(f"{model.name} has no alias {alias!r}{_known(alias, list(model.aliases))}")
        try:
            return self.server.client().get_model_version(model.name, model.aliases[alias] if alias else str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise LookupError(f"no version {uri}: {model.name} does not have it (any more)") from None

    def _run_of_logged_model(self, model_id: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.server.client().get_logged_model(model_id).source_run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise LookupError(f"no logged model {model_id!r}") from None


def _known(given: str, names: list[str]) -> str:
    """Return what to try instead, nearest first."""
    if not names:
        return "; there is none yet"
    near = difflib.get_close_matches(given, names, n=5, cutoff=0.3) or sorted(names)[:5]
    return f"; there are: {', '.join(near)}{' …' if len(names) > len(near) else ''}"
