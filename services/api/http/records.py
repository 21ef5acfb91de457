"""Serves the contracts' records: their OpenAPI schemas and their JSON.

FastAPI describes pydantic models, so each record becomes one, with the record's docstrings as descriptions. Responses
are written by msgspec and need no model.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
from collections.abc import Collection, Iterable
from itertools import pairwise
from types import UnionType
from typing import Any, get_args, get_origin

import msgspec
from fastapi import Response
from pydantic import BaseModel, Field, create_model

NEXT_CURSOR: dict[str, Any] = {
    "next_cursor": (str | None, Field(description="Pass as `cursor` to get the next page; null at the end."))
}
"""The further field of a `listing` in pages."""


@functools.cache
def schema(name: str, record: type[msgspec.Struct], hidden: Collection[str] = ("run_id",)) -> type[BaseModel]:
    """A model named `name` with the record's fields. Responses omit the `hidden` ones and unset ones, and always have
    the others."""
    texts = _docstrings(record)
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(record):
        if field.name not in hidden:
            default: Any = None if msgspec.UnsetType in get_args(field.type) else ...
            fields[field.name] = (_plain(field.type), Field(default, description=texts.get(field.name)))
    return create_model(name, __doc__=record.__doc__, **fields)


def listing(name: str, item: type[BaseModel], **further: Any) -> type[BaseModel]:
    """A model of a list of items, with further fields as `create_model` takes them."""
    return create_model(name, items=(list[item], ...), **further)  # type: ignore[valid-type]


def answer(item: type[BaseModel], records: Iterable[msgspec.Struct], **further: Any) -> Response:
    """The JSON of a `listing`: the fields of `item` from each record."""
    return _json({"items": [_shown(item, record) for record in records], **further})


def answer_one(item: type[BaseModel], record: msgspec.Struct, *, created_at: str | None = None) -> Response:
    """The JSON of one record: the fields that `item` has. `created_at` is the path of a record that was just
    created."""
    answer = _json(_shown(item, record))
    if created_at is not None:
        answer.status_code = 201
        answer.headers["Location"] = created_at
    return answer


def _shown(item: type[BaseModel], record: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(record, name) for name in item.model_fields}


def _json(values: Any) -> Response:
    return Response(msgspec.json.encode(values), media_type="application/json")


def _plain(kind: Any) -> Any:
    """The type for pydantic, with each struct replaced by its schema."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return schema(kind.__name__, kind, ())
    arguments = tuple(_plain(argument) for argument in get_args(kind) if argument is not msgspec.UnsetType)
    if arguments == get_args(kind):
        return kind
    if get_origin(kind) is UnionType:
        return functools.reduce(operator.or_, arguments)
    return get_origin(kind)[arguments]


def _docstrings(record: type[msgspec.Struct]) -> dict[str, str]:
    """Field names to the docstrings below them, of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(record.__mro__[: record.__mro__.index(msgspec.Struct)]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        for field, text in pairwise(ast.iter_child_nodes(tree)):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    found[name] = inspect.cleandoc(doc)
    return found
