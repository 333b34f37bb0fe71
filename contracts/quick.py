"""Quick forms: what a model asks of JSON, in one pass of pydantic's parser, without objects and calls into Python.

Owns how they are made from the models. A quick form may refuse what its model takes; then the model is to be asked. It
must never take what its model refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic's own, before Python 3.12

from contracts import events
from contracts.base import Text, Time

Fields = dict[str, Any]
Form = Callable[[bytes], Fields]

# A field that today's writers do not write may hold anything, and be nested as deep: the model is asked.
_AS_WRITTEN = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, cache_strings="keys")
# JSON in UTF-8 that holds a lone surrogate is none for pydantic's parser: what Text asks has been asked by then.
_IS_TEXT = get_args(Text)[1]
_IS_TIME = get_args(Time)[1]
_DAY = "(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"
# A time that is one by its form alone: 29 February is not always there.
PLAIN_TIME = rf"20[0-9][0-9]-(?:{_DAY})T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{{3}}Z"
_PLAIN_TIME = StringConstraints(pattern=f"^{PLAIN_TIME}$")


def data_form(shape: type[BaseModel]) -> Form:
    """An event's data alone."""
    adapter = TypeAdapter[Fields](_typed_dict(shape))
    return adapter.validator.validate_json


def event_form(envelope: type[BaseModel]) -> Form:
    """A whole event of any type in its newest schema_version: its envelope's fields, and its data as an object."""
    of_types = [_event(envelope, *entry) for entry in events.REGISTRY.items()]
    any_type: Any = Annotated[Union[tuple(of_types)], Field(discriminator="type")]  # noqa: UP007
    adapter = TypeAdapter[Fields](any_type)
    return adapter.validator.validate_json


def _event(envelope: type[BaseModel], event_type: str, entry: tuple[int, type[BaseModel]]) -> Any:
    schema_version, shape = entry
    fields = _fields(envelope)
    fields |= {"type": Literal[event_type], "schema_version": Literal[schema_version], "data": shape}
    if events.needs_turn(event_type):
        fields["turn_id"] = fields["event_id"]
    return with_config(_AS_WRITTEN)(TypedDict(event_type, fields))  # type: ignore[operator]


def _typed_dict(model: type[BaseModel]) -> Any:
    return with_config(_AS_WRITTEN)(TypedDict(model.__name__, _fields(model)))  # type: ignore[operator]


def _fields(model: type[BaseModel]) -> Fields:
    """Raises TypeError for a model that asks more than its fields do."""
    asked = model.__pydantic_decorators__
    if asked.validators or asked.field_validators or asked.root_validators or asked.model_validators:
        raise TypeError(f"{model.__name__} has a validator of its own: a quick form cannot ask what that asks")
    fields: Fields = {}
    for name, field in model.model_fields.items():
        kind = _plain(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)
        fields[name] = kind if field.is_required() else NotRequired[kind]
    return fields


def _plain(kind: Any) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        base, *asked = get_args(kind)
        asked = [_PLAIN_TIME if each == _IS_TIME else each for each in asked if each != _IS_TEXT]
        return Annotated[(_plain(base), *asked)] if asked else _plain(base)
    if origin in (Union, UnionType):
        return Union[tuple(_plain(each) for each in get_args(kind))]  # noqa: UP007
    if origin is list:
        return list[_plain(get_args(kind)[0])]  # type: ignore[misc]
    return _typed_dict(kind) if _is_model(kind) else kind


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and kind is not NoneType and issubclass(kind, BaseModel)
