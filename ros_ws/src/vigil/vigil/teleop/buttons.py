"""Buttons beside the device (foot pedals), and what buttons ask of recorder and arm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from vigil.teleop.device import BadInput, Fresh, Input, Sample
from vigil.teleop.keys import KeyFile
from vigil.teleop.settings import EPISODE_ROLES, REQUEST_ROLES, ButtonConfig, Role

SILENCE = 0.25  # [s] after which a button that comes over a topic counts as not there
OUTCOMES = {"success": "success", "failure": "failure", "discard": "discarded"}
REASON = "operator_stop"


class Buttons:
    """The buttons that a rig file names under ``teleop.buttons``, whatever they are connected to.

    A button that comes over a topic has to say all the time whether it is pressed: one that is silent is not pressed, and
    a silent deadman is unknown.
    """

    def __init__(self, settings: Mapping[Role, ButtonConfig]) -> None:
        self._topics = {role: button.topic for role, button in settings.items() if button.topic is not None}
        self._keys = {
            role: (button.input, button.code) for role, button in settings.items() if button.topic is None
        }
        self._told = {role: Fresh(SILENCE) for role in self._topics}
        self._files = {path: KeyFile(path) for path, _ in self._keys.values()}

    @property
    def inputs(self) -> Sequence[Input]:
        """Topics that are to be fed to it."""
        return [Input(topic, "button") for topic in dict.fromkeys(self._topics.values())]

    def feed(self, topic: str, sample: Sample, now: float) -> None:
        """A button's topic said something at ``now`` [s]."""
        if not isinstance(sample, bool):
            raise BadInput(f"{topic}: a button is told by a Bool")
        for role, named in self._topics.items():
            if named == topic:
                self._told[role].tell(sample, now)

    def open(self) -> None:
        """Take hold of the input devices; VigilError says what is missing."""
        for file in self._files.values():
            file.open()

    def close(self) -> None:
        """Let go of them."""
        for file in self._files.values():
            file.close()

    def poll(self, now: float) -> dict[Role, bool | None]:
        """What is pressed at ``now`` [s], by role; None where the button is not there."""
        for file in self._files.values():
            file.poll(now)
        told = {role: fresh.get(now) for role, fresh in self._told.items()}
        return {
            **told,
            **{role: self._files[path].pressed(code) for role, (path, code) in self._keys.items()},
        }

    @property
    def trouble(self) -> str:
        """What was unplugged; empty if nothing was."""
        return "; ".join(file.trouble for file in self._files.values() if file.trouble)


class EpisodeButtons:
    """Presses of episode buttons and of the e-stop, and the outcome that they mean."""

    def __init__(self) -> None:
        # What is held at first counts once released; but for the e-stop, which counts at once.
        self._held: frozenset[str] = frozenset(EPISODE_ROLES)
        self._episode = ""
        self._authorities: set[str] = set()

    def pressed(self, held: Collection[str]) -> list[str]:
        """Roles whose button was pressed since the last call, which are held now."""
        before, self._held = self._held, frozenset(held)
        return [role for role in REQUEST_ROLES if role in self._held and role not in before]

    def note(self, episode: str, authority: str) -> None:
        """The open episode (empty: none) and who controls the arm."""
        if episode != self._episode:
            self._episode, self._authorities = episode, set()
        self._authorities.add(authority)

    def outcome(self, role: str) -> str:
        """What to tell the recorder: a success that policy and operator share is an intervened one."""
        shared = "BLENDED" in self._authorities or {"POLICY", "OPERATOR"} <= self._authorities
        return "intervened_success" if role == "success" and shared else OUTCOMES[role]
