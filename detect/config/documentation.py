"""Documentation of all options, from their classes: the list of `detect options`, and a JSON schema for editors."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from detect.config.experiment import ClassificationConfig, Config
from detect.config.reading import CLASSIFIER, experiment_adapter, options_class
from detect.models import model_names

REQUIRED = dataclasses.MISSING


@dataclass(frozen=True, slots=True)
class Option:
    """One option, or a section of options.

    Attributes:
        key: name with its sections, such as `training.epochs`.
        kind: type in words, such as `integer > 0`.
        meaning: what the option does.
        defaults: default value by model or, in a section that is a choice, by its choices; `REQUIRED` for none. A
            section has the name that it chooses by default, or nothing.
        everywhere: True if all models or choices of its section have the option.
    """

    key: str
    kind: str
    meaning: str
    defaults: dict[str, Any]
    everywhere: bool = True


def all_options() -> list[Option]:
    """Return the options of all models, grouped by section. An option whose type or meaning differs is listed again."""
    merged: dict[tuple[str, str, str], Option] = {}
    owners: dict[str, set[str]] = {}
    for name in _experiments():
        experiment: Any = ClassificationConfig if name == CLASSIFIER else Config
        for option in _walk(experiment, experiment(model=cast(Any, options_class(name))()), "", name):
            meaning = "" if option.kind.startswith("section") else option.meaning
            known = merged.setdefault((option.key, option.kind, meaning), option)
            known.defaults.update(option.defaults)
            owners.setdefault(_parent(option.key), set()).update(option.defaults)
    places = {key: place for place, key in enumerate(dict.fromkeys(option.key for option in merged.values()))}

    def place(option: Option) -> list[int]:
        parts = option.key.split(".")
        return [places[".".join(parts[: depth + 1])] for depth in range(len(parts))]

    found = sorted(merged.values(), key=place)
    return [replace(option, everywhere=set(option.defaults) == owners[_parent(option.key)]) for option in found]


def _experiments() -> tuple[str, ...]:
    """Return the names of all models, the default one first."""
    default = Config().model.name
    return (default, *(name for name in (*model_names(), CLASSIFIER) if name != default))


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


def _walk(cls: type, values: Any, prefix: str, owner: str) -> Iterator[Option]:
    """Yield the options of a class and of its sections; `values` holds the defaults, or is None if one is required."""
    hints, meanings = get_type_hints(cls, include_extras=True), option_meanings(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        default = _default(field) if values is None else getattr(values, field.name)
        if field.name == "name" and prefix:
            continue  # the kind of the section lists the names
        sections = [type(default)] if key == "model" else _sections(hint)
        if not sections:
            yield Option(key, _words(TypeAdapter(hint).json_schema()), meanings.get(field.name, ""), {owner: default})
            continue
        names = _experiments() if key == "model" else [section.name for section in sections if hasattr(section, "name")]
        kind = f"section with the name {' | '.join(names)}" if names else "section"
        kind += " or null" if type(None) in get_args(hint) else ""
        chosen = _experiments()[0] if key == "model" else getattr(default, "name", "" if default else None)
        yield Option(key, kind, meanings.get(field.name, ""), {owner: chosen})
        for section in sections:
            values_of = default if type(default) is section else _instance(section)
            yield from _walk(section, values_of, f"{key}.", section.name if len(sections) > 1 else owner)


def _sections(hint: Any) -> list[Any]:
    """Return the classes of options in a type: none for a value or a list, several for a choice by name."""
    if get_origin(hint) is tuple:
        return []
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [section for part in get_args(hint) for section in _sections(part)]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is REQUIRED else field.default_factory()


def _instance(cls: type) -> Any:
    """Return the options with their defaults; None if some have none."""
    required = [field for field in dataclasses.fields(cls) if _default(field) is REQUIRED]
    return None if required else cls()


def _words(schema: dict[str, Any]) -> str:
    """Return a type of JSON schema in words, such as `integer > 0`."""
    match schema:
        case {"anyOf": options}:
            return " or ".join(_words(option) for option in options)
        case {"const": value}:
            return f"{value}"
        case {"enum": values}:
            return " | ".join(map(str, values))
        case {"type": "array", "prefixItems": [item, *_] as items}:
            return f"list of {len(items)} {_plural(_words(item))}"
        case {"type": "array", "items": item}:
            return f"list of {_plural(_words(item))}"
        case {"type": "integer" | "number" as kind}:
            return f"{kind}{_bounds(schema)}"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "string"}:
            return {"path": "path"}.get(schema.get("format", ""), "text")
        case {"type": "object"}:
            return "mapping"
    return str(schema.get("type", "value"))


def _plural(kind: str) -> str:
    return re.sub(r"^(integer|number|mapping|path)", r"\1s", kind)


def _bounds(schema: dict[str, Any]) -> str:
    if (schema.get("minimum"), schema.get("maximum")) == (0, 1):
        return " from 0 to 1"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " and".join(f" {sign} {schema[name]:,}" for name, sign in signs.items() if name in schema)


# ---- meanings --------------------------------------------------------------------------------------------------------


@cache
def option_meanings(cls: type) -> dict[str, str]:
    """Return the meaning of each option of a class, from `Args:` in its docstring and from docstrings of attributes."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            meanings |= _args(inspect.cleandoc(base.__doc__ or "")) | _attributes(base)
    return meanings


def _args(docstring: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE) if section else []
    return {name: " ".join(text.split()) for name, text in entries}


def _attributes(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    found = {}
    for statement, text in pairwise(body):
        match statement, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(meaning))):
                found[name] = " ".join(meaning.split())
    return found


# ---- schema ----------------------------------------------------------------------------------------------------------


class _Documented(GenerateJsonSchema):
    """Pydantic's schema with the meanings of the options, and with names required where they choose a class."""

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        result = super().dataclass_schema(schema)
        if "description" in result:
            result["description"] = result["description"].partition("\n\n")[0]
        for name, meaning in option_meanings(schema["cls"]).items():
            if name in result["properties"]:
                result["properties"][name]["description"] = meaning
        return result

    def tagged_union_schema(self, schema: Any) -> JsonSchemaValue:
        result = super().tagged_union_schema(schema)
        return result | {"oneOf": [{**member, "required": ["name"]} for member in result["oneOf"]]}


def json_schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of an experiment with whichever model `model.name` chooses."""
    names = _experiments()
    adapters = [(name, "validation", experiment_adapter(cast(Any, options_class(name)))) for name in names]
    experiments, shared = TypeAdapter.json_schemas(adapters, schema_generator=_Documented)  # type: ignore[arg-type]
    schema: dict[str, Any] = experiments[names[0], "validation"]
    for name in names[1:]:
        is_named = {"properties": {"name": {"const": name}}, "required": ["name"]}
        condition = {"properties": {"model": is_named}, "required": ["model"]}
        schema = {"if": condition, "then": experiments[name, "validation"], "else": schema}
    model = {"type": "object", "properties": {"name": {"enum": list(names), "default": names[0]}}}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config of detect",
        "type": "object",
    }
    return {**head, "properties": {"model": model}, **schema, **shared}
