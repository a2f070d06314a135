"""From a configuration node to the object it describes: `_target_` names the class, the other keys are its constructor's arguments."""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from influx.errors import InfluxError, nearest

T = TypeVar("T")


def build(node: Mapping[str, Any], family: Callable[..., T], group: str) -> T:
    """The object of `node`, a subclass of `family`; nested nodes with a `_target_`, alone or in a list, are built first.

    Only classes can be named, and each must belong to its family before it is built (a nested one to the class that the argument is
    annotated with), so a configuration cannot run arbitrary code.

    Raises:
        InfluxError: the class cannot be imported, is not of the family, or does not take a key; the message names the group.
    """
    return _construct(_find(node, family, group), node, group)  # type: ignore[arg-type]


def _find(node: Mapping[str, Any], family: type, group: str) -> type:
    path = node.get("_target_")
    if "own" in node and path is None:
        raise InfluxError(
            f"{group}: the run was made in Python, with {node['own']}, and can be repeated only there (influx.estimate, validate)."
        )
    if not isinstance(path, str) or "." not in path:
        raise InfluxError(f"{group}: the configuration has no _target_; name a class, for example _target_: mylab.MyClass.")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InfluxError(f"{group}: {path} cannot be imported ({error}). Is its folder on PYTHONPATH?") from error
    if not inspect.isclass(found) or inspect.isabstract(found):
        raise InfluxError(f"{group}: {path} is not a class that can be built.")
    if not issubclass(found, family):
        raise InfluxError(f"{group}: {path} is not a kind of {family.__module__}.{family.__name__}; derive it from that class.")
    return found


def _construct(cls: type, node: Mapping[str, Any], group: str) -> Any:
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    accepted = inspect.signature(cls).parameters
    for key in arguments:
        if key not in accepted:
            takes = ", ".join(accepted) or "none"
            raise InfluxError(f"{group}.{key}: {cls.__name__} has no such argument; it takes {takes}.{nearest(key, accepted)}")
    for key, value in arguments.items():
        if _is_node(value):
            found = _find(value, _annotated(cls, key, group), f"{group}.{key}")
            arguments[key] = _construct(found, value, f"{group}.{key}")
        elif isinstance(value, list) and any(map(_is_node, value)):
            family = _annotated(cls, key, group, inside=True)
            arguments[key] = [_construct(_find(one, family, f"{group}.{key}"), one, f"{group}.{key}") for one in value]
    missing = [name for name, p in accepted.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD and name not in arguments]
    if missing:
        raise InfluxError(f"{group}: {cls.__name__} also needs {', '.join(missing)}.")
    return cls(**arguments)


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _annotated(cls: type, argument: str, group: str, inside: bool = False) -> type:
    """The class that an argument is annotated with, or (`inside`) that its sequence is of."""
    hint = typing.get_type_hints(cls.__init__).get(argument)  # type: ignore[misc]
    if inside:
        hint = next(iter(typing.get_args(hint)), None)
    if not inspect.isclass(hint):
        raise InfluxError(f"{group}.{argument}: {cls.__name__} annotates it with no class, so no _target_ can be built for it.")
    return hint


def describe(instance: Any) -> dict[str, Any]:
    """What determines an object built from a configuration: class, fields, and the source of every module outside `influx` that its class
    or a base class comes from (other helpers that those call are not seen)."""
    cls = type(instance)
    said: dict[str, Any] = {"class": f"{cls.__module__}.{cls.__qualname__}"}
    for name, value in vars(instance).items():
        said[name] = describe(value) if hasattr(value, "__dict__") and not isinstance(value, type) else value
    foreign = _foreign(cls)
    if foreign:
        said["source"] = foreign
    return said


def foreign_sources(config: Any) -> dict[str, str]:
    """The source of every module outside `influx` that a `_target_` anywhere in a configuration comes from, and of the user's own ones that
    it uses. One that cannot be imported is left out: the run that asks for it says so."""
    if isinstance(config, Mapping):
        found = {name: text for value in config.values() for name, text in foreign_sources(value).items()}
        path = config.get("_target_")
        if isinstance(path, str) and not path.startswith("influx."):
            module, _, name = path.rpartition(".")
            try:
                found |= _foreign(getattr(importlib.import_module(module), name))
            except (ImportError, AttributeError, ValueError, OSError, TypeError):
                return found
        return found
    if isinstance(config, list):
        return {name: text for value in config for name, text in foreign_sources(value).items()}
    return {}


def _foreign(cls: type) -> dict[str, str]:
    """Of the modules of a class and its bases, and of the user's own modules that those name, at any remove."""
    names = {base.__module__ for base in cls.__mro__ if not base.__module__.startswith(("influx.", "builtins", "abc"))}
    found = {name: inspect.getsource(sys.modules[name]) for name in names}
    waiting = [sys.modules[name] for name in names if _is_users(sys.modules[name])]
    while waiting:
        for value in list(vars(waiting.pop()).values()):
            other = value if isinstance(value, ModuleType) else sys.modules.get(str(getattr(value, "__module__", "")))
            if other is not None and other.__name__ not in found and _is_users(other):
                found[other.__name__] = inspect.getsource(other)
                waiting.append(other)
    return dict(sorted(found.items()))


def _is_users(module: ModuleType) -> bool:
    """Whether it is Python source that is neither ours nor installed with Python or as a library."""
    file = Path(getattr(module, "__file__", None) or "")
    if file.suffix != ".py" or module.__name__.partition(".")[0] == "influx":
        return False
    return not file.is_relative_to(sysconfig.get_path("stdlib")) and not {"site-packages", "dist-packages"} & set(file.parts)
