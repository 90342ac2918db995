"""Licences of shared runs, as the Hugging Face Hub names them."""

from __future__ import annotations

import re

UNKNOWN = "unknown"
"""Default: a record has no licence, and only the authors can grant one."""

# The identifiers that the Hub accepts in a model card. Any other licence is "other" with a name.
_OF_THE_HUB = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl "
    "mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl"
)


def front_matter(licence: str) -> dict[str, str]:
    """Return the entries of a model card about a licence.

    Args:
        licence: An identifier of the Hub, such as "apache-2.0", or any name. "unknown": nobody chose one.

    Example:
        >>> front_matter("Apache-2.0"), front_matter("unknown")
        ({'license': 'apache-2.0'}, {'license': 'other', 'license_name': 'unknown'})
    """
    if licence.lower() in _OF_THE_HUB.split():
        return {"license": licence.lower()}
    name = re.sub(r"[^a-z0-9.-]+", "-", licence.lower()).strip("-") or UNKNOWN
    return {"license": "other", "license_name": name}


def sentence(licence: str) -> str:
    """Return the sentence of a model card about a licence."""
    if licence == UNKNOWN:
        return "Unknown. Ask the authors before you use these files beyond reading them."
    return f"{licence}."
