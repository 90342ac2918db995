"""Register every level's model as a version of a registered model, with an alias for its seeds and level.

`models:/aws-digits-resnet20@s1-L07` is level 7 of the AWS search with init_seed 1 and sgd_seed 1.
"""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING

from harness.config.own_loop import OWN_LOOP
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.tracking.server import KEY_TAG, Server, check_answer, summary_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
_VERSION_TAGS = ("level", "init_seed", "sgd_seed")
_VERSIONS_TAG = "mlflow.modelVersions"
_LOGGED_MODEL = re.compile(r"models:/(m-[0-9a-f]+)")


def model_name(record: LineageRecord | RunSummary) -> str:
    """Return the name of a level's registered model, e.g. aws-digits-resnet20."""
    tags = record.tags
    own_loop = tags.get("made_by") == OWN_LOOP  # its data are unknown
    data = [] if own_loop else [tags.get("data", "?")]
    words = (tags.get("method", "?"), *data, tags.get("network", tags.get("model", "?")))
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(words))


def alias_of(record: LineageRecord | RunSummary) -> str:
    """Return the alias of a level: s1-L07, or i1-s2-L07 if init_seed and sgd_seed differ."""
    sgd_seed = record.tags.get("sgd_seed", "?")
    init_seed = record.tags.get("init_seed", sgd_seed if record.tags.get("made_by") == OWN_LOOP else "?")
    seeds = f"s{sgd_seed}" if init_seed == sgd_seed else f"i{init_seed}-s{sgd_seed}"
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{seeds}-L{record.tags.get('level', '00')}")


def is_model_uri(text: str) -> bool:
    """Return whether `text` is the URI of a model version, an alias or a logged model."""
    return text.startswith("models:/")


def _with_suffix(alias: str, node: RunSummary) -> str:
    """Return the alias of a level whose plain alias another search owns."""
    return f"{alias}-{node.tags.get('settings', node.key)[:6]}"


class Registry:
    """The registered models of one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._created: set[str] = set()
        self._read: dict[str, tuple[dict[str, str], dict[str, str]]] = {}

    def register(self, model: LoggedModel, node: RunSummary) -> None:
        """Register a level's logged model, and set its alias. Idempotent."""
        name = model_name(node)
        self._read.pop(name, None)
        self._create(name, node)
        version = self._version(name, str(node.run_id), model, node)
        self._give_alias(name, version, node)

    def forget(self) -> None:
        """Read versions and aliases anew at the next `fault`: people can change them."""
        self._read.clear()

    def fault(self, model: LoggedModel, node: RunSummary) -> str | None:
        """Return what is wrong with a level's version and alias in one line, or None. `register` mends it."""
        # Phase: find the level's version.
        name, alias = model_name(node), alias_of(node)
        versions, aliases = self._contents(name)
        version = versions.get(str(node.run_id))
        if version is None:
            cause = "the version was deleted"
            if _VERSIONS_TAG not in model.tags:
                cause += ", or an earlier version of the harness registered none, and `sync` adds it"
            return f"it has no version in the registered model {name}; {cause}"

        # Phase: find the alias. It has a suffix if another search owns the plain one.
        for wanted in (alias, _with_suffix(alias, node)):
            named = aliases.get(wanted)
            if named == version:
                return None
            owner = self._alias_owner(name, wanted) if named is not None else None
            if owner is None or not self._is_another(owner, node, alias):
                what = "no version" if named is None else f"version {named}"
                return f"models:/{name}@{wanted} names {what}, but this run is version {version}"
        return None

    def _contents(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return {run ID: version} and {alias: version} of a registered model, from a cache."""
        from mlflow.exceptions import MlflowException

        if name not in self._read:
            client = self.server.client()
            versions: dict[str, str] = {}
            token: str | None = None
            while True:
                page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
                # A person can register a run again. Its first version counts.
                for one in page:
                    before = versions.get(str(one.run_id))
                    versions[str(one.run_id)] = str(min(int(one.version), int(before or one.version)))
                token = page.token
                if not token:
                    break
            try:
                aliases = {alias: str(one) for alias, one in client.get_registered_model(name).aliases.items()}
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                aliases = {}
            self._read[name] = versions, aliases
        return self._read[name]

    def run_id(self, uri: str) -> str:
        """Return the ID of the run that made a model.

        Raises:
            LookupError: The `models:/` URI names no model. The message lists similar names.
        """
        logged = _LOGGED_MODEL.fullmatch(uri)
        if logged:
            return self._run_of_logged_model(logged[1])
        parts = _URI.fullmatch(uri)
        if parts is None:
            raise LookupError(f"{uri!r} is not a model URI: give models:/NAME@ALIAS, models:/NAME/VERSION or a run ID")
        registered = self._registered(parts["name"])
        version = self._find_version(registered, parts["version"], parts["alias"], uri)
        if not version.run_id:
            raise LookupError(f"{uri} has no run: it was not registered by this harness")
        return str(version.run_id)

    def _create(self, name: str, record: RunSummary) -> None:
        from mlflow.exceptions import MlflowException

        if name in self._created:
            return
        tags = record.tags
        network = tags.get("network", tags.get("model", "?"))
        description = (
            f"Signed masks that {tags.get('method')} found in {network} on {tags.get('data')}. Each version is one "
            "level of one search. Aliases name seeds and level: s1-L07 is level 7 of the search with init_seed 1 and "
            "sgd_seed 1, and i1-s2-L07 has init_seed 1 and sgd_seed 2. Version numbers follow the order of delivery."
        )
        try:
            self.server.client().create_registered_model(name, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._created.add(name)

    def _version(self, name: str, run_id: str, model: LoggedModel, record: RunSummary) -> str:
        """Return the number of a level's version, and create the version if it is missing."""
        # Phase: find or create the version.
        client = self.server.client()
        found = [one for one in client.search_model_versions(f"run_id = '{run_id}'") if one.name == name]
        if found:
            version = str(min(int(one.version) for one in found))
        else:
            # Without a server, MLflow ignores the client's store and looks models up in its global store.
            remote = self.server.is_remote
            source = f"models:/{model.model_id}" if remote else model.artifact_location
            tags = {KEY_TAG: record.key}
            tags |= {word: record.tags[word] for word in _VERSION_TAGS if word in record.tags}
            if (density := record.metrics.get("density")) is not None:
                tags["density"] = f"{density:.3f}"
            # A server accepts such a source only together with the model ID.
            model_id = model.model_id if remote else None
            # a table shows it as plain text
            description = f'{record.name}: harness.load_signed_mask("{run_id}")'
            made = client.create_model_version(
                name, source, run_id=run_id, tags=tags, description=description, model_id=model_id
            )
            version = str(made.version)

        # Phase: link the version on the pages of the model and of the run.
        versions = json.dumps([{"name": name, "version": version}])
        if model.tags.get(_VERSIONS_TAG) != versions:
            client.set_logged_model_tags(model.model_id, {_VERSIONS_TAG: versions})
        return version

    def _give_alias(self, name: str, version: str, record: RunSummary) -> None:
        """Set the alias of a version. If another search owns the alias, add a suffix to this one."""
        client = self.server.client()
        alias = alias_of(record)
        owner = self._alias_owner(name, alias)
        if owner is not None and str(owner.version) != version and self._is_another(owner, record, alias):
            alias = _with_suffix(alias, record)
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

    def _is_another(self, owner: ModelVersion, record: RunSummary, alias: str) -> bool:
        """Return whether a version is a run of another key, which exists and whose own alias this is.

        An alias that a person moved to the version of another level is not owned by it. Nor is one that was moved to
        the same level of another search, which has the alias with its suffix, unless both have it.
        """
        run = self.server.get_run(owner.run_id) if owner.run_id else None
        if run is None or run.data.tags.get(KEY_TAG) in (None, record.key):
            return False
        other = summary_of(run)
        if alias_of(other) != alias:
            return False
        aliases = self._contents(owner.name)[1]
        has_suffix = aliases.get(_with_suffix(alias, other)) == str(owner.version)
        return not has_suffix or _with_suffix(alias, record) in aliases

    def _registered(self, name: str) -> RegisteredModel:
        from mlflow.exceptions import MlflowException

        client = self.server.client()
        try:
            registered = client.get_registered_model(name)
            check_answer(registered.name)
            return registered
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
            raise LookupError(f"no version {uri}: {model.name} does not have it") from None

    def _run_of_logged_model(self, model_id: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            run_id = self.server.client().get_logged_model(model_id).source_run_id
            check_answer(run_id)
            return str(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise LookupError(f"no logged model {model_id!r}") from None


def _known(given: str, names: list[str]) -> str:
    """Return a hint with the existing names, the most similar first."""
    if not names:
        return "; there is none yet"
    near = difflib.get_close_matches(given, names, n=5, cutoff=0.3) or sorted(names)[:5]
    return f"; there are: {', '.join(near)}{' …' if len(names) > len(near) else ''}"
