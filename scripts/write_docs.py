"""Writes docs/configuration.md from the configuration models, so that it cannot differ from what the server accepts.

Run by ``make docs``; `tests/test_docs.py` fails when the file is out of date.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.tasks import TaskSpec
from server.config import Config

TARGET: Final = Path(__file__).parent.parent / "docs" / "configuration.md"
HEADER: Final = """# Configuration

What `python -m server --config FILE` reads. This page is written from the code by `make docs`; the files in
`configs/` are examples with comments. Unknown keys are errors. `--set key.path=value` overrides any key, such as
`--set run.rounds=20 --set model.layers=2`. A client needs no file: the server tells it its tasks and how to train.
"""
#: Filled in by the program, not by the user.
HIDDEN: Final = {(TaskSpec, "name")}
#: Required in the model, but filled in by kind before it is validated.
BY_KIND: Final = {"loss", "metrics"}
NOTES: Final[dict[type[BaseModel], str]] = {
    TaskSpec: "An entry may build on a shipped one, `{use: glue/sst2}`, and give only what differs. `labels` is a list "
    "of class names in id order, or a mapping from class name to the raw value, or values, that mean it.",
}
BOUNDS: Final = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}", "pattern": "`{}`"}


def configuration_page() -> str:
    """The whole page."""
    waiting: list[tuple[str, type[BaseModel]]] = [("", Config)]
    seen: set[type[BaseModel]] = set()
    sections = [HEADER]
    while waiting:
        path, model = waiting.pop(0)
        if model not in seen:
            seen.add(model)
            sections.append(_section(path, model))
            waiting = [*_below(path, model), *waiting]  # depth first: a section is followed by what is inside it
    return "\n".join(sections)


def _below(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if model is Config and name == "tasks":
            yield "tasks.NAME", TaskSpec
        for inner in _models(field.annotation):
            yield (f"{path}.{name}" if path else name) + _deeper(field.annotation), inner


def _section(path: str, model: type[BaseModel]) -> str:
    about = (model.__doc__ or "").strip().split("\n\n")
    title = f"`{path}`" if path else "The file"
    if family := _fixed(model):
        title += f", {family}"
    lines = [f"## {title}", "", " ".join([_one_line(about[0]), NOTES.get(model, "")]).strip(), ""]
    lines += ["| key | value | default | what |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if (model, name) in HIDDEN:
            continue
        what = _one_line(field.description or _first_sentence(field))
        default = "by kind" if model is TaskSpec and name in BY_KIND else _default(field)
        lines.append(f"| `{name}` | {_cell(_value(field))} | {default} | {_cell(what)} |")
    return "\n".join([*lines, ""])


def _fixed(model: type[BaseModel]) -> str:
    """What distinguishes alternatives of one key: a field with one possible value, or the one they require."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return f"`{name}: {get_args(field.annotation)[0]}`"
    if model.__name__.endswith("Source"):
        return {"HubSource": "`hub: ...`", "SyntheticSource": "`synthetic: ...`"}.get(model.__name__, "files")
    return ""


def _first_sentence(field: FieldInfo) -> str:
    inner = list(_models(field.annotation))
    return (inner[0].__doc__ or "").split("\n")[0] if inner else ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401  # any annotation there is
    """The models inside an annotation, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from _models(part)


def _deeper(annotation: Any) -> str:  # noqa: ANN401
    return ".NAME" if get_origin(annotation) is dict else ""


def _value(field: FieldInfo) -> str:
    bounds = []
    for constraint in field.metadata:
        for attribute, words in BOUNDS.items():
            limit = getattr(constraint, attribute, None)
            if limit is not None:
                bounds.append(words.format(f"{limit:,}" if isinstance(limit, int) and limit < 2**53 else limit))
    return ", ".join([_type(field.annotation), *dict.fromkeys(bounds)])


def _type(annotation: Any) -> str:  # noqa: ANN401
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in arguments))
    if origin in (tuple, list):
        inner = list(dict.fromkeys(_type(part) for part in arguments if part is not Ellipsis))
        return f"list of {' or '.join(inner)}"
    if origin is dict:
        return f"mapping of name to {_type(arguments[1])}"
    if annotation in (None, type(None)):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel | Enum):
        return "section"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", Any: "anything"}
    return words.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]  # no data needed
    if value is PydanticUndefined or isinstance(value, BaseModel) or value in ({}, (), []):
        return ""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(configuration_page(), encoding="utf-8")
