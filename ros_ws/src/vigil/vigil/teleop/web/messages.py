"""What a browser may say to the server: one JSON object per message, and nothing that is not exactly as it should be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vigil.fields import Finite
from vigil.teleop.device import BadInput

LONGEST = 2048  # bytes of a message
Deflection = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Button = Literal["hand_back", "switch", "estop", "start", "success", "failure", "discard", "mark"]
OF_ALL: frozenset[str] = frozenset({"estop", "mark"})
"""Buttons that whoever watches may press: anyone may stop the arm, and a second person marks a disturbance."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hello(_Message):
    """The first message: who is there."""

    type: Literal["hello"]
    token: Annotated[str, Field(max_length=200)] = ""
    name: Annotated[str, Field(max_length=40)] = ""


class Seat(_Message):
    """Asks to drive, or gives it up."""

    type: Literal["seat"]
    take: bool


class Here(_Message):
    """A watcher's answer to a state; ``echo`` is the state's stamp."""

    type: Literal["here"]
    echo: Finite


class Hand(_Message):
    """The driver's answer to a state, and what the hand does.

    Attributes:
        echo: stamp of the newest state that the browser has [s], of the server's clock.
        axes: [6] deflections, as `vigil.teleop.devices.cartesian.Controls.axes`.
        speed: share of the rig file's speeds.
    """

    type: Literal["hand"]
    echo: Finite
    deadman: bool
    axes: tuple[Deflection, Deflection, Deflection, Deflection, Deflection, Deflection]
    speed: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    grip: Literal["", "open", "close"] = ""


class Press(_Message):
    """A button was pressed."""

    type: Literal["press"]
    button: Button


Message = Annotated[Hello | Seat | Here | Hand | Press, Field(discriminator="type")]
_ADAPTER: TypeAdapter[Hello | Seat | Here | Hand | Press] = TypeAdapter(Message)


def parse(text: str | bytes) -> Hello | Seat | Here | Hand | Press:
    """The message in ``text``.

    Raises:
        BadInput: it is none; names the field, what was passed and what is allowed.
    """
    if not isinstance(text, str):
        raise BadInput("a message is text, not bytes")
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise BadInput(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, int | float | bool | None) else ""
    return f"{where + ': ' if where else ''}{first['msg']}{shown}"
