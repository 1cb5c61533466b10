"""HTML pages in one file each, from Jinja2 templates on one base: everything inside, nothing fetched."""

import base64
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from megavrc.errors import UserError

HERE = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """A page from a template that extends `base.html`; texts are escaped, a value that is missing is an error."""
    folders = [template.parent, HERE]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    return environment.get_template(template.name).render(**values)


def picture(path: Path, alt: str) -> Markup:
    """An `<img>` element that holds a PNG or GIF file.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such picture; run the step that makes it first")
    kind = {".png": "png", ".gif": "gif"}[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode()
    return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(alt, kind, data)
