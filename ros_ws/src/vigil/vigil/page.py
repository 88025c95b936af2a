"""HTML pages made of a template that lies beside its code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2


def template(path: Path, value: Callable[..., str]) -> jinja2.Template:
    """The template in ``path``; it shows numbers by its filter ``value``, and a name that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = value
    return environment.get_template(path.name)
