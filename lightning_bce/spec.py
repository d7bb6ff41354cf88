"""Specs: a module written down as its class path and plain arguments.

A checkpoint that holds a pickled module cannot be read with ``weights_only=True``, and a checkpoint that holds nothing
cannot rebuild it. A spec holds what is needed and nothing that runs:
``{"class_path": "package.Class", "init_args": {...}}`` with numbers, strings, lists and further specs inside, the form
that a YAML configuration has too.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Spec = dict[str, Any]

_RECORD = "_recorded_init"


class SpecError(TypeError):
    """What was given cannot be written as a spec, or a spec does not name what it should."""


class Recorded:
    """A base whose instances remember the arguments they were made with.

    Every subclass gets this for its own ``__init__`` without writing a line, so that a user's class is as
    reloadable as ours. Arguments have to be plain values, tensors, classes or modules that have a spec themselves.

    Example:
        >>> class Scale(Recorded, torch.nn.Module):
        ...     def __init__(self, factor: float = 1.0) -> None:
        ...         super().__init__()
        ...         self.factor = factor
        >>> Scale(factor=2.0).spec()["init_args"]
        {'factor': 2.0}
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the constructor of a subclass that has its own."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def spec(self) -> Spec:
        """Return the class path and the plain arguments that rebuild this object."""
        cls = type(self)
        given, defaults = self._arguments()
        init_args = {name: to_plain(value, f"{cls.__name__}({name}=...)") for name, value in given.items()}
        for name, value in defaults.items():
            try:
                init_args[name] = to_plain(value)
            except SpecError:
                continue  # a default need not be written down: it is there again when the object is built
        return {"class_path": class_path(cls), "init_args": init_args}

    def _record(self, **values: Any) -> None:
        """Remember other values of some arguments, as if the object had been made with them.

        A subclass with a constructor of its own may not have an argument of that name; its spec stays as it was.
        """
        given, _ = self._arguments()
        parameters = inspect.signature(type(self).__init__).parameters
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        known = {name: value for name, value in values.items() if open_ended or name in parameters}
        object.__setattr__(self, _RECORD, _as_it_is_now(((), {**given, **known})))

    def _arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        args, kwargs = self.__dict__.get(_RECORD, ((), {}))
        signature = inspect.signature(type(self).__init__)
        bound = signature.bind(self, *args, **kwargs)
        given: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                given.update(value)
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                raise SpecError(
                    f"{type(self).__name__} was made with positional arguments collected by `*{name}`, which a spec "
                    "cannot name. Give its constructor named parameters."
                )
            else:
                given[name] = value
        bound.apply_defaults()
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        defaults = {
            name: value
            for name, value in list(bound.arguments.items())[1:]
            if name not in given and signature.parameters[name].kind not in variable
        }
        return given, defaults

    @property
    def fingerprint(self) -> int:
        """A number that two objects share when their specs are equal, on every machine and rank."""
        return zlib.crc32(repr(_sorted(self.spec())).encode())


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        # The outermost constructor wins: what its super().__init__ receives is not what the user wrote. The
        # arguments are bound only when a spec is asked for: a wrong one fails in `init` with Python's own words.
        if _RECORD not in self.__dict__:
            object.__setattr__(self, _RECORD, _as_it_is_now((args, kwargs)))
        init(self, *args, **kwargs)

    # Lightning reads the signature without following the wrapper.
    wrapped.__signature__ = inspect.signature(init)  # type: ignore[attr-defined]
    return wrapped


def _as_it_is_now(value: Any) -> Any:
    # The caller may go on to change a list or a tensor that was an argument; modules are described as they are.
    if type(value) in (list, tuple, set):
        return type(value)(_as_it_is_now(item) for item in value)
    if type(value) is dict:
        return {key: _as_it_is_now(item) for key, item in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def class_path(cls: type) -> str:
    """Return the dotted path under which ``cls`` is imported.

    Raises:
        SpecError: If the class is local to a function, so that no path leads to it.
    """
    if "<locals>" in cls.__qualname__:
        raise SpecError(
            f"{cls.__qualname__} is defined inside a function, so a checkpoint cannot name it. Move the class to the "
            "top level of a module."
        )
    return f"{cls.__module__}.{cls.__qualname__}"


def to_plain(value: Any, where: str = "value") -> Any:
    """Return ``value`` as numbers, strings, lists and dictionaries, modules and classes as specs.

    Args:
        value: What to write down.
        where: What the value is, for the error.

    Raises:
        SpecError: If there is no plain form, as for functions and arbitrary objects.
    """
    if value is None or isinstance(value, bool):
        return value
    # Of Python's own types: numpy's float is a `float` too, but a checkpoint cannot hold it and its repr is another.
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)  # an Enum's own `str` would be the member's name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, nn.Module):
        return describe(value)
    if isinstance(value, type) and issubclass(value, nn.Module):
        return {"class": class_path(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise SpecError(f"{where} is {_short(value)}; a checkpoint holds dictionaries with strings as keys only.")
        return {to_plain(key): to_plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [to_plain(item, where) for item in sorted(value, key=repr)]  # its own order differs between processes
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):  # omegaconf's lists too
        return [to_plain(item, where) for item in value]
    if hasattr(value, "tolist"):  # numpy
        return to_plain(value.tolist(), where)
    raise SpecError(
        f"{where} is {_short(value)}, which has no plain form. A checkpoint can hold numbers, strings, lists, "
        "dictionaries, nn.Module classes and modules that are themselves made of these."
    )


def with_own_containers(value: Any) -> Any:
    """Return ``value`` with lists and dictionaries of Python in the place of those of configurations (omegaconf).

    A checkpoint cannot hold the others: it is read with ``weights_only=True``.
    """
    if isinstance(value, Mapping):
        return {key: with_own_containers(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, tuple)):
        return [with_own_containers(item) for item in value]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text[:77]}..." if len(text) > 80 else text


# -- modules of other people ------------------------------------------------------------------------------------------


def describe(module: nn.Module) -> Spec:
    """Return a spec of any module, or say why there is none.

    A :class:`Recorded` module knows its arguments. Of the containers the children are described. Of every other module
    each constructor parameter is read from the attribute of the same name, as torch's own layers keep them; the result
    is built once on the meta device and compared with the original, so that a spec that is returned does rebuild it.

    Raises:
        SpecError: If the module cannot be rebuilt from plain values.

    Example:
        >>> describe(torch.nn.Linear(3, 1))["init_args"]["in_features"]
        3
    """
    if isinstance(module, Recorded):
        return module.spec()
    cls = type(module)
    if isinstance(module, (nn.Sequential, nn.ModuleList)) and cls in (nn.Sequential, nn.ModuleList):
        # Not `named_children`, which leaves out the second place of an activation that is used twice.
        parts = {name: child for name, child in module._modules.items() if child is not None}
        if sum(len(list(part.parameters())) for part in parts.values()) > len(list(module.parameters())):
            raise SpecError(_advice(cls, "a weight occurs more than once in it, and a spec would make two of it"))
        children: Any = {name: describe(child) for name, child in parts.items()}
        if list(children) == [str(i) for i in range(len(children))]:
            children = list(children.values())
        return {"class_path": class_path(cls), "children": children}
    spec: Spec = {"class_path": class_path(cls), "init_args": _arguments_from_attributes(module)}
    check_rebuilds(module, spec)
    return spec


def _arguments_from_attributes(module: nn.Module) -> dict[str, Any]:
    cls = type(module)
    arguments: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if name in ("device", "dtype"):
            continue
        if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue  # torch.nn.Tanh and Identity take `*args` and ignore them; the comparison below finds the others
        value = getattr(module, name, inspect.Parameter.empty)
        if name == "bias" and (value is None or isinstance(value, Tensor)):
            value = value is not None  # torch's layers take a flag and keep the parameter under its name
        if value is inspect.Parameter.empty:
            if parameter.default is not inspect.Parameter.empty:
                continue  # the default, unless the comparison below finds a difference
            raise SpecError(_advice(cls, f"its constructor takes `{name}` and keeps no attribute of that name"))
        if isinstance(value, Tensor):
            raise SpecError(_advice(cls, f"its argument `{name}` is a tensor, which belongs to the weights"))
        arguments[name] = to_plain(value, f"{cls.__name__}.{name}")
    return arguments


def check_rebuilds(module: nn.Module, spec: Spec) -> None:
    """Refuse a spec from which another module than this one is built, by structure, shapes and plain attributes.

    Raises:
        SpecError: If so.
    """
    cls = type(module)
    # No checkpoint holds a non-persistent buffer, so its values have to be the same; on the meta device there are none.
    device = "cpu" if any(part._non_persistent_buffers_set for part in module.modules()) else "meta"
    try:
        # A constructor may draw random numbers; describing a module must not change the run.
        with torch.random.fork_rng(devices=[]), torch.device(device):
            twin = build(spec, nn.Module)
    except Exception as error:
        raise SpecError(_advice(cls, f"building it again failed: {error}")) from error
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (module, twin)]
    plain = [_plain_attributes(m) for m in (module, twin)]
    if repr(module) != repr(twin) or shapes[0] != shapes[1] or plain[0] != plain[1]:
        raise SpecError(_advice(cls, "its attributes do not tell how it was made"))


def _plain_attributes(module: nn.Module) -> list[dict[str, Any]]:
    simple = (bool, int, float, str, type(None))
    found = []
    for part in module.modules():
        own: dict[str, Any] = {k: v for k, v in vars(part).items() if isinstance(v, simple) and k != "training"}
        own |= {k: repr(v) for k, v in vars(part).items() if isinstance(v, (dict, set)) and not k.startswith("_")}
        # A spec has lists only, so that a module built from one may keep a list where a tuple was: `hidden=(128, 64)`.
        own |= {k: repr(_lists(v)) for k, v in vars(part).items() if isinstance(v, (list, tuple))}
        for name in part._non_persistent_buffers_set:
            buffer = part._buffers[name]
            own[name] = None if buffer is None else bytes(buffer.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        found.append(own)
    return found


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _advice(cls: type, reason: str) -> str:
    return (
        f"{cls.__module__}.{cls.__qualname__} cannot be written into a checkpoint: {reason}. Let the class derive from "
        "`lightning_bce.Recorded` as well (before nn.Module), which remembers its constructor's arguments."
    )


# -- back from a spec -------------------------------------------------------------------------------------------------


def is_spec(value: Any) -> bool:
    """Return whether ``value`` has the form of a spec."""
    return (
        isinstance(value, Mapping) and "class_path" in value and set(value) <= {"class_path", "init_args", "children"}
    )


def load_class(path: str, base: type) -> Any:
    """Return the class at ``path``, which has to be a subclass of ``base``.

    Raises:
        SpecError: If nothing is there, or something that is no such subclass: a checkpoint or a configuration cannot
            have arbitrary code called.
    """
    if not isinstance(path, str) or "." not in path:
        raise SpecError(f"A class path looks like 'package.module.Class'; got {path!r}.")
    names = path.split(".")
    found: Any = None
    for cut in range(len(names) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(names[:cut]))
        except ModuleNotFoundError as error:
            if error.name is None or not ".".join(names[:cut]).startswith(error.name):
                raise  # the module is there, something that it imports is not
            continue
        for name in names[cut:]:
            found = getattr(found, name, None)
        break
    if not isinstance(found, type) or not issubclass(found, base):
        what = "there is no such class" if found is None else f"it is {_short(found)}"
        raise SpecError(
            f"{path!r} should name a subclass of {base.__module__}.{base.__qualname__}, but {what}. If the class is "
            "yours, import or put its file on the path before loading."
        )
    return found


def build(spec: Mapping[str, Any], base: type) -> Any:
    """Build the object that ``spec`` describes.

    Args:
        spec: Class path and plain arguments.
        base: What the object has to be an instance of. Checked before anything is called.

    Raises:
        SpecError: If the spec names anything but a subclass of ``base``, or has unknown parts.
    """
    if not is_spec(spec):
        raise SpecError("A spec is {'class_path': 'package.Class', 'init_args': {...}}; got " + _short(spec) + ".")
    cls = load_class(spec["class_path"], base)
    if "children" in spec:
        if cls not in (nn.Sequential, nn.ModuleList):
            raise SpecError(f"{spec['class_path']} is no container, so its spec cannot hold 'children'.")
        children = spec["children"]
        if isinstance(children, Sequence):
            parts = [build(child, nn.Module) for child in children]
            container: Any = nn.Sequential(*parts) if cls is nn.Sequential else cls(parts)
            return container
        return cls(OrderedDict((name, build(child, nn.Module)) for name, child in children.items()))
    return cls(**{name: _revive(value) for name, value in (spec.get("init_args") or {}).items()})


def _revive(value: Any) -> Any:
    if is_spec(value):
        return build(value, nn.Module)
    if isinstance(value, Mapping) and set(value) == {"class"}:
        return load_class(value["class"], nn.Module)
    if isinstance(value, Mapping):
        return {key: _revive(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_revive(item) for item in value]
    return copy.copy(value)


# -- factories: what is called later with one argument ----------------------------------------------------------------


def factory_spec(factory: Any, base: type, name: str) -> Spec | None:
    """Return the spec of an optimizer or scheduler that is still to be built: a class, a partial of one, or a spec.

    Args:
        factory: A subclass of ``base``, :func:`functools.partial` of one with keywords, a spec of one, or None.
        base: The class it makes.
        name: The argument's name, for the error.

    Raises:
        SpecError: If it is anything else, such as a lambda, which no checkpoint can hold.

    Example:
        >>> import torch
        >>> factory_spec(functools.partial(torch.optim.SGD, lr=0.1), torch.optim.Optimizer, "optimizer")
        {'class_path': 'torch.optim.sgd.SGD', 'init_args': {'lr': 0.1}}
    """
    if factory is None:
        return None
    if is_spec(factory):
        load_class(factory["class_path"], base)
        return {"class_path": factory["class_path"], "init_args": to_plain(factory.get("init_args") or {}, name)}
    arguments: dict[str, Any] = {}
    made = factory
    if isinstance(factory, functools.partial) and not factory.args:
        made, arguments = factory.func, dict(factory.keywords)
    if not isinstance(made, type) or not issubclass(made, base):
        raise SpecError(
            f"`{name}` is {_short(factory)}; a subclass of {base.__name__}, functools.partial of one with keywords, or "
            "a spec was expected. A lambda or an object cannot be kept in a checkpoint: write "
            "functools.partial(SomeClass, lr=0.1), or override `configure_optimizers`."
        )
    return {"class_path": class_path(made), "init_args": to_plain(arguments, name)}


def call_factory(spec: Mapping[str, Any], base: type, argument: Any) -> Any:
    """Build what a factory's spec names, with ``argument`` first.

    Raises:
        SpecError: If the spec names anything but a subclass of ``base``.
    """
    cls = load_class(spec["class_path"], base)
    return cls(argument, **copy.deepcopy(dict(spec.get("init_args") or {})))
