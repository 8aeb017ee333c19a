"""A fused model gives what the plain one gives, also after a change of whatever the forward read when it was fused.

`CASES` names places where a value can live, and a change of each. A case either is fused, and its condition notices the
change, or `fuse` declines.
"""

import argparse
import collections
import contextvars
import copy
import dataclasses
import enum
import functools
import math  # noqa: F401  # a case reads it
import os  # noqa: F401  # a case reads it
import random  # noqa: F401  # a case reads it
import sys
import types
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from vologan_kernels import fuse, unfuse
from vologan_kernels.instance_norm import operation

# ---- values outside a module ----------------------------------------------------------------------------------------

SLOPE = 0.2
SLOPES = [0.2]
OPTIONS = {"slope": 0.2}
NAMESPACE = argparse.Namespace(slope=0.2)
VARIABLE = contextvars.ContextVar("slope", default=0.2)
COUNTER = iter(range(100))


class Options:
    slope = 0.2

    @classmethod
    def read(cls):
        return cls.slope

    @staticmethod
    def fixed():
        return 0.2


@dataclasses.dataclass
class Settings:
    slope: float = 0.2


class Kind(enum.Enum):
    LEAKY = "leaky"
    PLAIN = "plain"


KIND = Kind.LEAKY

elsewhere = types.ModuleType("fuse_reads_elsewhere")
sys.modules["fuse_reads_elsewhere"] = elsewhere
exec(
    "from torch.nn import functional as F\n"
    "slope = 0.2\n"
    "def act(x): return F.leaky_relu(x, slope)\n"
    "def get(): return slope\n",
    vars(elsewhere),
)


def helper(x):
    return F.leaky_relu(x, SLOPE)


def helper_with_default(x, slope=0.2):
    return F.leaky_relu(x, slope)


def helper_with_keyword(x, *, slope=0.2):
    return F.leaky_relu(x, slope)


def helper_with_list(x, slopes=[0.2]):  # noqa: B006
    return F.leaky_relu(x, slopes[0])


def other_helper(x):
    return F.leaky_relu(x, 0.9)


def make_helper(slope):
    def closure(x):
        return F.leaky_relu(x, slope)

    def change(value):
        nonlocal slope
        slope = value

    closure.change = change
    return closure


closure = make_helper(0.2)


@functools.lru_cache
def cached():
    return SLOPE


class Callable_:
    slope = 0.2

    def __call__(self, x):
        return F.leaky_relu(x, self.slope)


class Descriptor:
    value = 0.2

    def __get__(self, instance, owner):
        return self.value


def helper_with_attribute(x):
    return F.leaky_relu(x, helper_with_attribute.slope)


helper_with_attribute.slope = 0.2


def helper_of_class(x, kind):
    return F.leaky_relu(x, kind.class_slope)


# ---- models ---------------------------------------------------------------------------------------------------------


class Base(nn.Module):
    parent_slope = 0.2

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.act = nn.LeakyReLU(0.2)
        self.child = Child()
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.ReLU()])
        self.table = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1)})
        self.again, self.norm_again, self.child_again = self.act, self.norm, nn.Module()
        self.child_again.inner = self.child.inner
        self.parameters_ = nn.ParameterList([nn.Parameter(torch.full((), 1.5))])
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.full((), 1.5))})
        self.scale = nn.Parameter(torch.full((), 1.5))
        self.register_buffer("factor", torch.full((), 1.5))
        self.register_parameter("absent", None)

    def parent_act(self, x):
        return F.leaky_relu(x, 0.2)


class Child(nn.Module):
    class_slope = 0.2

    def __init__(self):
        super().__init__()
        self.slope = 0.2
        self.inner = nn.Identity()
        self.inner.slope = 0.2

    def act(self, x):
        return F.leaky_relu(x, self.slope)

    def forward(self, x):
        return self.act(x)


def leaky(slope):
    """A forward of Base that reads its slope by a function of the module."""

    def make():
        class Model(Base):
            class_slope = 0.2
            descriptor = Descriptor()

            def __init__(self):
                super().__init__()
                self.slope, self._slope, self.missing_default = 0.2, 0.2, None
                self.listed, self.tabled, self.nested = [0.1, 0.2], {"slope": 0.2}, {"a": {"slopes": [0.2]}}
                self.tuple, self.set = (0.2, "x"), {0.2}
                self.deque, self.namespace = collections.deque([0.2]), argparse.Namespace(slope=0.2)
                self.simple, self.settings, self.options = types.SimpleNamespace(slope=0.2), Settings(), Options()
                self.text, self.flag, self.kind, self.number = "leaky", True, Kind.LEAKY, 1
                self.plain_tensor = torch.tensor(0.2)
                self.array = torch.tensor([0.2]).numpy()
                self.function, self.partial = helper_with_default, functools.partial(F.leaky_relu, negative_slope=0.2)
                self.lambda_ = lambda x: F.leaky_relu(x, 0.2)
                self.callable, self.weak = Callable_(), weakref.ref(Options)

            @property
            def computed(self):
                return self._slope * 1

            @staticmethod
            def static(x):
                return F.leaky_relu(x, 0.2)

            @classmethod
            def of_class(cls, x):
                return F.leaky_relu(x, cls.class_slope)

            def method(self, x):
                return F.leaky_relu(x, 0.2)

            def with_default(self, x, slope=0.2):
                return F.leaky_relu(x, slope)

        Model.forward = slope
        return Model()

    return make


def by(expression):
    """A forward that applies leaky_relu with the slope `expression`, or the function `expression` of u."""
    is_call = "(u" in expression or "u * 0" in expression
    source = "def forward(self, x):\n    u = self.norm(x)\n    return "
    source += f"{expression} * 1\n" if is_call else f"F.leaky_relu(u, {expression}) * 1\n"
    variables: dict = {}
    exec(compile(source, "<case>", "exec"), globals(), variables)
    return leaky(variables["forward"])


class Between(Base):
    pass


class Inherits(Between):
    def forward(self, x):
        return super().parent_act(self.norm(x)) * 1


def sequence(*layers):
    return lambda: nn.Sequential(*copy.deepcopy(layers))


def item(model, name, value):
    getattr(model, name)[-1] = value


def hook(module):
    module.register_forward_hook(lambda module, inputs, output: output * 3)


def patch_forward(module):
    module.forward = types.MethodType(lambda self, x: x.sigmoid(), module)


@dataclasses.dataclass
class Case:
    name: str
    make: Callable
    change: Callable
    """A change of the model, or of something else by `patch`, a MonkeyPatch."""
    fused: bool = True
    """Whether the case is fused. Otherwise `fuse` declines."""


def put(name, value=0.9):
    return lambda model, patch: setattr(model, name, value)


def put_in(path, name, value=0.9):
    return lambda model, patch: setattr(model.get_submodule(path), name, value)


def patched(owner, name, value=0.9):
    return lambda model, patch: patch.setattr(owner(model) if owner is kind_of else owner, name, value)


def kind_of(model):
    """The class of a model as it was written."""
    return next(kind for kind in type(model).__mro__ if "class_slope" in vars(kind))


here = sys.modules[__name__]
ONE = sequence(nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(0.2), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 1))
KEPT = sequence(nn.InstanceNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 1))

CASES = [
    # attributes of the model
    Case("instance", by("self.slope"), put("slope")),
    Case("instance, deleted", by("getattr(self, 'slope', 0.9)"), lambda m, p: delattr(m, "slope")),
    Case("instance, int for float", by("self.number"), put("number", 1.0)),
    Case("instance, bool for int", by("(0.2 if isinstance(self.number, bool) else 0.9)"), put("number", True)),
    Case("class, set on the instance", by("self.class_slope"), put("class_slope")),
    Case("class, set on the class", by("self.class_slope"), patched(kind_of, "class_slope")),
    Case("parent class", by("self.parent_slope"), patched(Base, "parent_slope")),
    Case("parent class, set on the class", by("self.parent_slope"), patched(kind_of, "parent_slope")),
    Case("property", by("self.computed"), put("_slope")),
    Case("property, replaced", by("self.computed"), patched(kind_of, "computed", property(lambda self: 0.9))),
    Case("absent, then present", by("getattr(self, 'later', 0.2)"), put("later")),
    Case("hasattr", by("(0.9 if hasattr(self, 'later') else 0.2)"), put("later")),
    Case("None, then a number", by("(self.missing_default or 0.2)"), put("missing_default")),
    Case("with a function of math", by("(math.sqrt(self.slope))"), put("slope")),
    Case("super()", Inherits, patched(Base, "parent_act", lambda self, x: x.sigmoid())),
    Case("super(), overridden between", Inherits,
        lambda m, p: p.setattr(Between, "parent_act", lambda self, x: x.sigmoid(), raising=False)),
    Case("text", by("(0.2 if self.text == 'leaky' else 0.9)"), put("text", "other")),
    Case("flag", by("(0.2 if self.flag else 0.9)"), put("flag", False)),
    Case("enum", by("(0.2 if self.kind == Kind.LEAKY else 0.9)"), put("kind", Kind.PLAIN)),
    Case("list", by("self.listed[-1]"), lambda m, p: item(m, "listed", 0.9)),
    Case("list, grown", by("self.listed[-1]"), lambda m, p: m.listed.append(0.9)),
    Case("length of a list", by("(0.1 * len(self.listed))"), lambda m, p: m.listed.append(0.9)),
    Case("dict", by("self.tabled['slope']"), lambda m, p: m.tabled.update(slope=0.9)),
    Case("dict, by get", by("self.tabled.get('other', 0.2)"), lambda m, p: m.tabled.update(other=0.9)),
    Case("nested", by("self.nested['a']['slopes'][0]"), lambda m, p: m.nested["a"]["slopes"].__setitem__(0, 0.9)),
    Case("tuple", by("self.tuple[0]"), put("tuple", (0.9, "x"))),
    Case("set", by("(0.2 if 0.2 in self.set else 0.9)"), lambda m, p: m.set.clear()),
    Case("function", by("self.function(u)"), put("function", other_helper)),
    Case("lambda", by("self.lambda_(u)"), put("lambda_", lambda x: F.leaky_relu(x, 0.9))),
    Case("method, on the object", by("self.method(u)"), put("method", other_helper)),
    Case("method, on the class", by("self.method(u)"), patched(kind_of, "method", lambda self, x: x.sigmoid())),
    Case("method of the parent", by("self.parent_act(u)"), patched(Base, "parent_act", lambda self, x: x.sigmoid())),
    Case("method of the parent, overridden", by("self.parent_act(u)"),
        patched(kind_of, "parent_act", lambda self, x: x.sigmoid())),
    Case("static method", by("self.static(u)"), patched(kind_of, "static", staticmethod(other_helper))),
    Case("default of a method", by("self.with_default(u)"),
        lambda m, p: p.setattr(kind_of(m).with_default, "__defaults__", (0.9,))),
    Case("forward of the class", by("self.slope"), patched(kind_of, "forward", lambda self, x: x.sigmoid())),
    Case("forward of the object", by("self.slope"), lambda m, p: patch_forward(m)),
    Case("buffer", by("(u * self.factor)"), put("factor", torch.tensor(9.0))),
    Case("buffer, None", by("(u if self.factor is None else u * self.factor)"), put("factor", None)),
    Case("parameter", by("(u * self.scale)"), lambda m, p: m.scale.data.fill_(9)),
    Case("parameter, exchanged", by("(u * self.scale)"), put("scale", nn.Parameter(torch.tensor(9.0)))),
    Case("parameter, None", by("(u if self.scale is None else u * self.scale)"), put("scale", None)),
    Case("None, then a parameter", by("(u if self.absent is None else u * 9)"),
        put("absent", nn.Parameter(torch.tensor(9.0)))),
    Case("tensor that is no buffer", by("(u * self.plain_tensor)"), put("plain_tensor", torch.tensor(9.0))),
    Case("training", by("F.dropout(u, 1.0, self.training)"), lambda m, p: m.eval()),
    Case("training of a child", by("F.dropout(u, 1.0, self.child.training)"), lambda m, p: m.child.eval()),
    # attributes of children, and the children themselves
    Case("child's attribute", by("self.child.slope"), put_in("child", "slope")),
    Case("child's class", by("self.child.class_slope"), patched(Child, "class_slope")),
    Case("grandchild's attribute", by("self.child.inner.slope"), put_in("child.inner", "slope")),
    Case("child's method", by("self.child.act(u)"), put_in("child", "slope")),
    Case("child's method, on the class", by("self.child.act(u)"), patched(Child, "act", lambda self, x: x.sigmoid())),
    Case("child's method, on the object", by("self.child.act(u)"), put_in("child", "act", other_helper)),
    Case("child, called", by("self.child(u)"), put_in("child", "slope")),
    Case("child, None", by("(u if self.child is None else self.child(u))"), put("child", None)),
    Case("child, by its class", by("(u * 9 if isinstance(self.layers[0], nn.Identity) else u)"),
        lambda m, p: m.layers.__setitem__(0, nn.Identity())),
    Case("child's attribute, by getattr", by("(u * getattr(self.layers[0], 'stride')[0])"),
        lambda m, p: setattr(m.layers[0], "stride", (9, 9))),
    Case("number of children", by("(u * len(self.layers))"), lambda m, p: m.layers.append(nn.ReLU())),
    Case("loop over children", by("functools.reduce(lambda y, f: f(y), self.layers, self.norm(u))"),
        lambda m, p: m.layers.append(nn.Sigmoid()), False),
    Case("list of children", by("[y := layer(u) for layer in self.layers][-1]"),
        lambda m, p: m.layers.append(nn.Sigmoid())),
    Case("dictionary of children", by("(u * len([*self.table.keys()]))"),
        lambda m, p: m.table.update({"b": nn.ReLU()})),
    Case("child in a dictionary", by("('b' in self.table) * u + self.table['a'](u)"),
        lambda m, p: m.table.update({"b": nn.ReLU()})),
    Case("named children", by("sum([layer(u) for name, layer in self.named_children() if name == 'act'])"),
        lambda m, p: setattr(m, "act", nn.Sigmoid())),
    Case("child by a name", by("getattr(self, 'a' + 'ct')(u)"), put("act", nn.Sigmoid())),
    Case("child with two names", by("self.again(self.norm(x) + 0 * (u))"), put("again", nn.Sigmoid())),
    Case("child with two names, the other", by("self.again(self.norm(x) + 0 * (u))"), put("act", nn.Sigmoid())),
    Case("norm with two names", by("F.relu(self.norm_again(x) * 2 + u * 0)"), put("norm_again", nn.Identity())),
    Case("list of parameters", by("(u * sum([p for p in self.parameters_]))"),
        lambda m, p: m.parameters_.append(nn.Parameter(torch.ones(())))),
    Case("parameter in a list", by("(u * self.parameters_[0])"), lambda m, p: m.parameters_[0].data.fill_(9)),
    Case("parameter in a list, exchanged", by("(u * self.parameters_[0])"),
        lambda m, p: m.parameters_.__setitem__(0, nn.Parameter(torch.full((), 9.0)))),
    Case("dictionary of parameters", by("(u * sum([self.named[k] for k in self.named.keys()]))"),
        lambda m, p: m.named.update({"b": nn.Parameter(torch.ones(()))})),
    # values elsewhere
    Case("global", by("SLOPE"), patched(here, "SLOPE")),
    Case("global enum", by("(0.2 if KIND is None else 0.9)"), patched(here, "KIND", None)),
    Case("global class", by("Options.slope"), patched(Options, "slope")),
    Case("other module", by("elsewhere.slope"), patched(elsewhere, "slope")),
    Case("helper, replaced", by("helper(u)"), patched(here, "helper", other_helper)),
    Case("helper's global", by("helper(u)"), patched(here, "SLOPE")),
    Case("helper's code", by("helper(u)"), patched(helper, "__code__", other_helper.__code__)),
    Case("helper's default", by("helper_with_default(u)"), patched(helper_with_default, "__defaults__", (0.9,))),
    Case("helper's keyword default", by("helper_with_keyword(u)"),
        lambda m, p: p.setitem(helper_with_keyword.__kwdefaults__, "slope", 0.9)),
    Case("helper's default list", by("helper_with_list(u)"),
        lambda m, p: p.setitem(Slot(helper_with_list.__defaults__[0]), 0, 0.9), False),
    Case("helper's attribute", by("helper_with_attribute(u)"), patched(helper_with_attribute, "slope"), False),
    Case("helper's attribute, later", by("(0.2 if not hasattr(helper, 'slope') else 0.9)"),
        lambda m, p: p.setattr(helper, "slope", 0.9, raising=False)),
    Case("class, given to a helper", by("helper_of_class(u, Child)"), patched(Child, "class_slope"), False),
    Case("helper in another module", by("elsewhere.act(u)"), patched(elsewhere, "slope")),
    Case("helper in another module, replaced", by("elsewhere.act(u)"), patched(elsewhere, "act", other_helper)),
    Case("function of a class", by("Options.fixed()"), patched(Options, "fixed", staticmethod(lambda: 0.9))),
    Case("function of torch", by("F.leaky_relu(u, 0.2)"), patched(F, "leaky_relu", lambda x, slope: x.sigmoid())),
    Case("built-in function, shadowed", by("max(0.1, 0.2)"),
        lambda m, p: p.setattr(here, "max", lambda *a: 0.9, raising=False)),
    # what fuse declines
    Case("deque", by("self.deque[0]"), lambda m, p: m.deque.__setitem__(0, 0.9), False),
    Case("namespace", by("self.namespace.slope"), lambda m, p: setattr(m.namespace, "slope", 0.9), False),
    Case("simple namespace", by("self.simple.slope"), lambda m, p: setattr(m.simple, "slope", 0.9), False),
    Case("dataclass", by("self.settings.slope"), lambda m, p: setattr(m.settings, "slope", 0.9), False),
    Case("object", by("self.options.slope"), lambda m, p: setattr(m.options, "slope", 0.9), False),
    Case("object with a call", by("self.callable(u)"), lambda m, p: setattr(m.callable, "slope", 0.9), False),
    Case("weak reference", by("self.weak().slope"), patched(Options, "slope"), False),
    Case("array", by("self.array[0]"), lambda m, p: m.array.fill(0.9), False),
    Case("number from a tensor", by("float(self.plain_tensor)"), lambda m, p: m.plain_tensor.fill_(0.9), False),
    Case("descriptor", by("self.descriptor"), patched(Descriptor, "value")),
    Case("partial", by("self.partial(u)"), lambda m, p: m.partial.keywords.update(negative_slope=0.9), False),
    Case("class method", by("self.of_class(u)"), patched(kind_of, "class_slope"), False),
    Case("class method elsewhere", by("Options.read()"), patched(Options, "slope"), False),
    Case("own dictionary", by("self.__dict__['slope']"), put("slope"), False),
    Case("vars", by("vars(self)['slope']"), put("slope"), False),
    Case("own class", by("self.__class__.class_slope"), patched(kind_of, "class_slope"), False),
    Case("type", by("type(self).class_slope"), patched(kind_of, "class_slope"), False),
    Case("internals", by("(u * len(self._forward_hooks) + u)"), lambda m, p: hook(m.act), False),
    Case("global list", by("SLOPES[0]"), lambda m, p: p.setitem(Slot(SLOPES), 0, 0.9), False),
    Case("global dict", by("OPTIONS['slope']"), lambda m, p: p.setitem(OPTIONS, "slope", 0.9), False),
    Case("global namespace", by("NAMESPACE.slope"), patched(NAMESPACE, "slope"), False),
    Case("globals()", by("globals()['SLOPE']"), patched(here, "SLOPE"), False),
    Case("closure", by("closure(u)"), lambda m, p: closure.change(0.9), False),
    Case("cache", by("cached()"), lambda m, p: (p.setattr(here, "SLOPE", 0.9), cached.cache_clear()), False),
    Case("context variable", by("VARIABLE.get()"), lambda m, p: VARIABLE.set(0.9), False),
    Case("iterator", by("(0.1 + next(COUNTER) * 0)"), lambda m, p: None, False),
    Case("random numbers", by("(0.2 + 0 * random.random())"), lambda m, p: None, False),
    Case("environment", by("float(os.environ.get('FUSE_SLOPE', '0.2'))"),
        lambda m, p: p.setenv("FUSE_SLOPE", "0.9"), False),
    Case("grad mode", by("(0.2 if torch.is_grad_enabled() else 0.9)"),
        lambda m, p: p.setattr(torch, "is_grad_enabled", lambda: False), False),
    Case("default type", by("(0.2 if torch.get_default_dtype() == torch.float32 else 0.9)"),
        lambda m, p: p.setattr(torch, "get_default_dtype", lambda: torch.float64), False),
    Case("class of a tensor", by("(u if isinstance(u, torch.Tensor) else u * 9)"), lambda m, p: None, False),
    Case("attribute of a tensor", by("(u * 9 if hasattr(u, 'mark') else u)"), lambda m, p: None, False),
    Case("size in a set", by("(u * 9 if x.size(1) in {4, 5} else u)"), lambda m, p: None, False),
    Case("size in a dictionary", by("{4: 0.9}.get(x.size(1), 0.2)"), lambda m, p: None, False),
    Case("size as text", by("getattr(self, f'slope{x.size(1)}', 0.2)"), put("slope4"), False),
    Case("size as text, by %", by("getattr(self, 'slope%s' % x.size(1), 0.2)"), put("slope4"), False),
    Case("size as text, by str", by("getattr(self, 'slope' + str(x.size(1)), 0.2)"), put("slope4"), False),
    Case("identity", by("(u if self.child is self.act else u * 2)"), lambda m, p: setattr(m, "child", m.act), False),
    Case("identity of results", by("(u if id(self.child) is not len(self.listed) else u * 2)"),
        lambda m, p: None, False),
    Case("name that disappears", by("(helper(u) if len(self.listed) > 5 else u)"),
        lambda m, p: p.delattr(here, "helper", raising=False)),
    Case("attribute that disappears", by("(elsewhere.act(u) if len(self.listed) > 5 else u)"),
        lambda m, p: p.delattr(elsewhere, "act", raising=False)),
    Case("import", by("__import__('fuse_reads_elsewhere').slope"), patched(elsewhere, "slope"), False),
    Case("child by a path", by("self.get_submodule('table.a')(u)"),
        lambda m, p: m.table.__setitem__("a", nn.Identity())),
    Case("child with two names, by a path", by("self.get_submodule('child_again.inner')(u)"),
        lambda m, p: m.get_submodule("child_again").__setattr__("inner", nn.Sigmoid())),
    # what the fused operation stands for
    Case("activation, patched", ONE, lambda m, p: patch_forward(m[1])),
    Case("activation's class, patched", ONE, patched(nn.LeakyReLU, "forward", lambda self, x: x.sigmoid())),
    Case("activation's function, patched", ONE, patched(F, "leaky_relu", lambda x, *options: x.sigmoid())),
    Case("activation, exchanged", ONE, lambda m, p: m.__setitem__(1, nn.Sigmoid())),
    Case("activation, hooked", ONE, lambda m, p: hook(m[1])),
    Case("slope", ONE, lambda m, p: setattr(m[1], "negative_slope", 0.9)),
    Case("slope, a tensor", ONE, lambda m, p: setattr(m[1], "negative_slope", torch.tensor(0.9))),
    Case("slope, an integer", ONE, lambda m, p: setattr(m[1], "negative_slope", 0)),
    Case("slope, negative", KEPT, lambda m, p: setattr(m[1], "negative_slope", -0.5)),
    Case("in place", ONE, lambda m, p: setattr(m[1], "inplace", True)),
    Case("norm, patched", ONE, lambda m, p: patch_forward(m[0])),
    Case("norm, hooked", ONE, lambda m, p: hook(m[0])),
    Case("norm, pre-hooked", ONE, lambda m, p: m[0].register_forward_pre_hook(lambda n, inputs: inputs[0] ** 3)),
    Case("norm, exchanged", ONE, lambda m, p: m.__setitem__(0, nn.BatchNorm2d(4))),
    Case("norm's function, patched", ONE, patched(F, "instance_norm", lambda x, *arguments: x.sigmoid())),
    Case("norm's class, patched", ONE, patched(nn.InstanceNorm2d, "forward", lambda self, x: x.sigmoid())),
    Case("norm's eps", ONE, lambda m, p: setattr(m[0], "eps", 0.5)),
    Case("norm's weight, changed", ONE, lambda m, p: m[0].weight.data.fill_(9)),
    Case("norm's weight, exchanged", ONE, lambda m, p: setattr(m[0], "weight", nn.Parameter(torch.rand(4)))),
    Case("norm's weight, None", ONE, lambda m, p: setattr(m[0], "weight", None)),
    Case("norm's bias, None", ONE, lambda m, p: setattr(m[0], "bias", None)),
    Case("norm, parametrized", ONE, lambda m, p: parametrizations.weight_norm(m[0], dim=None)),
    Case("norm, tracking", ONE, lambda m, p: (
        setattr(m[0], "track_running_stats", True), m[0].register_buffer("running_mean", torch.full((4,), 9.0)),
        m[0].register_buffer("running_var", torch.ones(4)), m.eval())),
    Case("padding", ONE, lambda m, p: setattr(m[2], "padding", (2, 2, 2, 2))),
    Case("padding, exchanged", ONE, lambda m, p: m.__setitem__(2, nn.ZeroPad2d(1))),
    Case("padding, hooked", ONE, lambda m, p: hook(m[2])),
    Case("convolution, exchanged", KEPT, lambda m, p: m.__setitem__(2, nn.ReLU(True))),
    Case("convolution, hooked", KEPT, lambda m, p: m[2].register_forward_pre_hook(lambda c, inputs: inputs[0].mul_(2))),
    Case("layer, appended", ONE, lambda m, p: m.append(nn.Sigmoid())),
    Case("layer, inserted", ONE, lambda m, p: m.insert(1, nn.Sigmoid())),
    Case("layer, deleted", ONE, lambda m, p: m.__delitem__(1)),
    Case("layers, exchanged", ONE, lambda m, p: m._modules.update({"0": m[1], "1": m[0]})),
    Case("GELU", sequence(nn.InstanceNorm2d(4), nn.GELU()), lambda m, p: setattr(m[1], "approximate", "tanh")),
    Case("ELU", sequence(nn.InstanceNorm2d(4), nn.ELU()), lambda m, p: setattr(m[1], "alpha", 0.3)),
    Case("PReLU", sequence(nn.InstanceNorm2d(4), nn.PReLU()),
        lambda m, p: setattr(m[1], "weight", nn.Parameter(torch.rand(4)))),
    Case("all modules, hooked", ONE, lambda m, p: GLOBAL_HOOKS.append(
        torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 1.5))),
    Case("calls of all modules", ONE, patched(nn.Module, "__call__", lambda self, x: self.forward(x) * 1.5)),
    Case("all iterations", ONE, lambda m, p: p.setattr(nn.Sequential, "forward", lambda self, x: x.sigmoid())),
]  # fmt: skip

GLOBAL_HOOKS = []


class Slot(dict):
    """A list in the clothes of a dictionary, for MonkeyPatch.setitem."""

    def __init__(self, values):
        super().__init__()
        self.values_ = values

    def __getitem__(self, key):
        return self.values_[key]

    def get(self, key, default=None):
        return self.values_[key]

    def __setitem__(self, key, value):
        self.values_[key] = value


@pytest.fixture
def change(monkeypatch):
    yield lambda case, model: case.change(model, monkeypatch)
    while GLOBAL_HOOKS:
        GLOBAL_HOOKS.pop().remove()
    closure.change(0.2)
    VARIABLE.set(0.2)


def fused_calls(model, x, monkeypatch):
    """The number of fused operations in a call of the model."""
    calls = []

    def counted(original):
        return lambda *given: calls.append(1) or original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(operation, "_operate", counted(operation._operate))
        patch.setattr(operation.native, "forward", counted(operation.native.forward))  # at once, or from _operate
        model(x)
    return len(calls)


def result(model, x):
    """The output and the gradients; or the error."""
    x = x.clone().requires_grad_()
    try:
        y = model(x)
        used = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        return y.detach(), *torch.autograd.grad(y, [x, *used], weights, allow_unused=True)
    except Exception as error:  # of whatever kind the plain model raises
        return type(error)


def check_same(found, expected, case):
    if isinstance(expected, type):
        assert found is expected or isinstance(found, tuple), case
        return
    assert isinstance(found, tuple), case
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None or not a.any()) if b is None else torch.allclose(a, b, rtol=1e-6, atol=1e-9), case


WHEN = {
    "at once": lambda model, x: model,
    "after a call": lambda model, x: (model(x), model)[1],
    "after a copy": lambda model, x: copy.deepcopy(model),
    "in a replica": lambda model, x: model,
    "after unfuse and fuse": lambda model, x: fuse(unfuse(model))[0],
}


class Appends(nn.Module):
    def forward(self, x, features):
        features.append(x)
        return x * 2


class AppendsToItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = []

    def forward(self, x):
        self.features.append(x)
        return x * 2


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.count, self.feature = 1.0, None
        self.register_buffer("total", torch.ones(()))

    def forward(self, x):
        self.count, self.feature, self.total = self.count + 1, x * 3, self.total + 1
        return x * 2


class Noise(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else None


def plus_one_if_none(x):
    return 1 if x is None else x


DURING = {
    # a list or dictionary that a child fills
    "list": "features = []; y = self.appends(u, features); return y * (1 + len(features))",
    "list in a tuple": "features = ([],); y = self.appends(u, *features); return y * (1 + len(features[0]))",
    "list of the model": "y = self.appends(u, self.listed); return y * (1 + len(self.listed))",
    "returned list": "features = []; y = self.appends(u, features); return y, features",
    # a name of a number or a tuple that `op=` leaves as it was
    **{f"{op}= of a size": f"n = m = x.size(1); n {op}= x.size(0); return u * m + n"
       for op in ("+", "-", "*", "/", "//", "%", "**", "&", "|", "^", "<<", ">>")},
    "+= of a shape": "s = t = x.shape; s += (1,); return u.view(s).view(t) * 2",
    "//= in a loop": "h, w = x.shape[2:]; old = h\n    for _ in range(2): h //= 2\n    return u * old + h",
    # attributes of tensors
    "dtype in a set": "return u * 2 if x.dtype in {torch.float64, torch.float16} else u",
    "ndim in a set": "return u * 2 if x.ndim in {4} else u",
    "ndim in a dictionary": "return u * {4: 2}.get(x.ndim, 1)",
    "device as text": "return u * 2 if str(x.device) == 'cpu' else u",
    "device in a text": "return u * 2 if f'{x.device.type}' == 'cpu' else u",
    "class of a shape": "return u * 2 if isinstance(x.shape, tuple) else u",
    "op= of data": "v = u.data; v *= 2; return u * 1",
    "requires_grad, read before": "r = u.requires_grad; v = u.detach().requires_grad_(); return v * 1 + u * r",
    # identity
    "training is True": "return u * 2 if self.training is True else u",
    "is_cuda is False": "return u * 2 if x.is_cuda is False else u",
    "grad_fn is not None": "return u * 2 if u.grad_fn is not None else u",
    "requires_grad is True": "return u * 2 if self.norm.weight.requires_grad is True else u",
    "match": "\n    match self.training:\n        case True: u = u * 2\n    return u * 1",
    "match of a shape": "\n    match x.shape:\n        case (a, b, c, d): u = u * 2\n    return u * 1",
    # None from a child
    "None of a child": "n = self.noise(u); return u * 3 if n is None else u + n",
    "None of a child, not": "n = self.noise(u)\n    if n is not None: u = u + n\n    return u * 1",
    "None of a child, at once": "return u * 3 if self.noise(u) is None else u * 1",
    "None of a child, named": "return u * 3 if (n := self.noise(u)) is None else u + n",
    "None of a child, in a function": "return u * plus_one_if_none(self.noise(u))",
    "None of a child, either": "n = self.slope if self.flag_ else self.noise(u); return u * (3 if n is None else n)",
    # state that a child sets
    "number of a child": "y = self.counts(u); return y * self.counts.count",
    "number of a child, before": "n = self.counts.count; y = self.counts(u); return y * (self.counts.count - n)",
    "buffer of a child": "n = self.counts.total; y = self.counts(u); return y * (self.counts.total - n)",
    "feature of a child": "y = self.counts(u); f = self.counts.feature; return y if f is None else y + f",
    "list of a child": "y = self.keeps(u); return y * len(self.keeps.features)",
    "list shared with a child": "y = self.keeps(u); return y * len(self.shared)",
}  # fmt: skip
FUSED_DURING = {name for name in DURING if "op= of" in name or "= of a" in name or "in a loop" in name}
FUSED_DURING |= {"requires_grad, read before"}


@pytest.mark.parametrize("name", DURING)
def test_what_happens_during_a_call_stays(name):
    source = f"def forward(self, x):\n    u = self.norm(x)\n    {DURING[name].lstrip()}\n"
    variables: dict = {}
    exec(compile(source, "<case>", "exec"), globals(), variables)

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.appends, self.keeps, self.counts, self.noise = Appends(), AppendsToItself(), Counts(), Noise()
            self.listed, self.slope, self.flag_, self.shared = [], 0.2, False, self.keeps.features

        forward = variables["forward"]

    plain = Model().double()
    model, report = fuse(copy.deepcopy(plain))
    assert bool(report.fused) == (name in FUSED_DURING), report
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for training in (True, True, False, False):
        found, expected = model.train(training)(x), plain.train(training)(x)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        assert len(model.listed) == len(plain.listed)


def test_a_test_for_none_of_other_values_is_fused():
    class Model(Base):
        def forward(self, x, skip=None):
            down = self.absent
            u = self.act(self.norm(x))
            if skip is not None:
                u = u + skip
            if self.child is not None and down is None:
                u = self.child(u)
            return u

    assert fuse(Model())[1].fused


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_change_reaches_the_fused_model(case, when, change, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    plain = case.make().double()
    model, report = fuse(copy.deepcopy(plain))
    assert bool(report.fused) == case.fused, report
    assert fused_calls(model, x, monkeypatch) >= len(report.fused)
    check_same(result(model, x), result(plain, x), case.name)
    model = WHEN[when](model, x)
    torch.manual_seed(1)
    change(case, plain)
    torch.manual_seed(1)
    if not GLOBAL_HOOKS:  # one hook on all modules is enough
        change(case, model)
    if when == "in a replica":
        model = replica(model)
    check_same(result(model, x), result(plain, x), case.name)


def replica(model):
    """A copy as nn.DataParallel makes it on another device."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for copied in copies.values():
        for name, child in copied._modules.items():
            copied._modules[name] = copies.get(child)
    for module, copied in copies.items():
        for name, parameter in module._parameters.items():
            copied._parameters[name] = parameter
    return copies[model]


def test_the_cases_are_many_and_most_are_fused():
    assert len({case.name for case in CASES}) == len(CASES) >= 100
    assert sum(case.fused for case in CASES) >= 2 * sum(not case.fused for case in CASES)
