"""Every public knob's rule, in one table: what `influx` accepts before it imports anything heavy.

A rule is looked up by the knob's place in the configuration (`training.lr`). The command line checks the whole composed
configuration against the table in its first second; the constructors check the same fields against the same table, so
the Python interface refuses what the command line refuses. A user's own class may bring keys that are not in the table:
those are its constructor's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from influx.errors import InfluxError, nearest
from influx.rule_kinds import (
    COUNTS,
    FLAG,
    INDEX,
    PARAMS,
    PICTURES,
    RATES,
    SHARES,
    SITES,
    SIZE,
    STRENGTH,
    TEXT,
    WAYS,
    WORD_SETS,
    Rule,
    choice,
    list_of,
    number,
    one_of_numbers,
    whole,
)

RULES: dict[str, Rule] = {
    "command": choice("train", "estimate", "validate", "reproduce"),
    "seed": whole(0),
    "dtype": choice("float32", "float64"),
    "device": choice("auto", "cpu", "cuda"),
    "threads": whole(1).or_word("auto"),
    "pictures": PICTURES,
    "top_k": whole(1),
    "test_points": choice("all", "highest", "median", "lowest"),
    "memory": SIZE,
    "checkpoints": whole(1),
    "path": TEXT.or_null(),
    "loo": FLAG,
    "truth": choice("loo", "pbrf", "subset", "group"),
    "resamples": whole(10),
    "scale": choice("quick", "paper"),
    "seeds": whole(1).or_null(),
    "settings": list_of(TEXT),
    "workers": whole(1).or_word("auto"),
    "fresh": FLAG,
    "jobs_dir": TEXT,
    "store.dir": TEXT.or_null(),
    "dataset.train_size": whole(1).or_null(),
    "dataset.test_size": whole(1).or_null(),
    "dataset.split_seed": whole(0),
    "dataset.standardize": FLAG,
    "dataset.label_noise": number(at_least=0, at_most=1),
    "dataset.noise_seed": whole(0),
    "dataset.classes": list_of(whole(0)).or_null(),
    "dataset.train_index": INDEX,
    "dataset.test_index": INDEX,
    "dataset.root": TEXT,
    "dataset.download": FLAG,
    "dataset.length": whole(3).or_null(),
    "dataset.path": TEXT,
    "dataset.target": TEXT,
    "dataset.task": choice("classification", "regression"),
    "dataset.unit": choice("document", "paragraph", "sentence"),
    "dataset.points": whole(2),
    "dataset.spread": number(above=0),
    "dataset.points_seed": whole(0),
    "dataset.held_out": FLAG,
    "model.depth": whole(0),
    "model.width": whole(1),
    "model.activation": choice("relu", "tanh", "selu", "gelu", "silu", "sigmoid"),
    "model.blocks": whole(1),
    "model.convolutions": whole(1),
    "model.units": whole(1),
    "model.dropout": number(at_least=0, below=1),
    "model.bias": FLAG,
    "model.layers": one_of_numbers(11, 13),
    "model.batch_norm": FLAG,
    "model.layers_trained": whole(0),
    "model.pooling": choice("mean", "first"),
    "model.pooler": FLAG,
    "model.weights": choice("pretrained", "random"),
    "model.heads": whole(1),
    "model.vocabulary": whole(2),
    "model.head": choice("linear", "published"),
    "model.growth": whole(1),
    "model.norm": choice("group", "batch"),
    "model.embedding": whole(1),
    "model.jitter": number(at_least=0),
    "model.pretraining": whole(0),
    "model.warm_up": whole(0),
    "model.pairs": whole(1),
    "objective.recompute": FLAG,
    "objective.embedding": whole(1),
    "objective.temperature": number(above=0),
    "objective.noise": number(at_least=0),
    "objective.noise_seed": whole(0),
    "objective.window": whole(1),
    "objective.negatives": whole(1),
    "objective.min_count": whole(1),
    "objective.vocabulary": whole(2),
    "objective.max_pairs": whole(1),
    "objective.draw_seed": whole(0),
    "objective.likelihood": choice("bernoulli", "gaussian"),
    "objective.clusters": whole(2),
    "measurement.ddof": one_of_numbers(0, 1),
    "training.lr": number(above=0),
    "training.epochs": whole(1),
    "training.batch_size": whole(1).or_null(),
    "training.momentum": number(at_least=0, below=1),
    "training.nesterov": FLAG,
    "training.beta1": number(at_least=0, below=1),
    "training.beta2": number(at_least=0, below=1),
    "training.amsgrad": FLAG,
    "training.decoupled_decay": number(at_least=0),
    "training.weight_decay": number(at_least=0),
    "training.schedule": choice("constant", "linear", "cosine", "step"),
    "training.average_from": number(at_least=0, below=1).or_null(),
    "training.tolerance": number(above=0),
    "training.max_iterations": whole(1),
    "method.damping": number(at_least=0).or_word("auto"),
    "method.curvature": choice("hessian", "ggn", "fisher"),
    "method.params": PARAMS,
    "method.checkpoints": choice("stored", "steps"),
    "method.count": whole(1).or_null(),
    "method.hessian": choice("exact", "none"),
    "method.form": choice("forward", "adjoint"),
    "method.state": choice("memory", "disk"),
    "method.keep": FLAG,
    "method.kind": choice("theta", "loss"),
    "method.fraction": number(above=0, below=1),
    "method.subsets": whole(2),
    "method.fit": choice("difference", "ridge", "lasso"),
    "method.permutations": whole(1),
    "method.tolerance": number(at_least=0),
    "method.most": whole(1),
    "method.space": choice("features", "inputs"),
    "method.labels": choice("signed", "ignored"),
    "method.precision": choice("float32", "float64"),
    "method.bias": choice("fixed", "moving", "dropped"),
    "method.weight_decay": choice("left_out", "inside", "optimizer", "released"),  # as_published's two words, hypergradient's two
    "method.inverse": choice("dense", "eigen", "solve", "lissa", "lissa_summed"),
    "method.depth": whole(1),
    "method.scale": number(above=0),
    "method.shrink": number(at_least=0, below=1),
    "method.dropout": choice("active", "inactive"),
    "method.index": choice("aligned", "shuffled"),
    "method.sign": choice("plus", "minus"),
    "method.divisor": one_of_numbers(1).or_word("n"),
    "method.neighbors": whole(1),
    "method.dim": whole(1),
    "method.models": whole(1),
    "method.rate": number(above=0, below=1),
    "method.masks": choice("integer", "sine"),
    "method.fair": FLAG,
    "method.sites": SITES,
    "method.path": TEXT.or_null(),
    "method.calibrated": FLAG,
    "method.strategy": choice("ekfac", "kfac", "diagonal", "identity"),
    "method.empirical": FLAG,
    "method.batch_size": whole(1).or_word("auto"),
    "method.fast": FLAG,
    "method.algorithm": choice("trak", "explicit", "cg", "datainf"),
    "method.max_iterations": whole(1),
    "method.curvature_of": choice("training", "measurement"),
    "method.gradient_of": choice("training", "measurement"),
    "method.solver.tolerance": number(above=0),
    "method.solver.max_iterations": whole(1),
    "method.solver.depth": whole(1),
    "method.solver.order": choice("drawn", "sequential"),
    "method.solver.scale": number(above=0).or_word("auto"),
    "method.solver.repeats": whole(1),
    "method.solver.batch_size": whole(1).or_word("auto"),
    "method.solver.rank": whole(1),
    "method.solver.steps": whole(1).or_word("auto"),
    "method.solver.complement": FLAG,
    "method.solver.sketch": choice("gaussian", "columns"),
    "method.segments": whole(1),
    "method.basis": choice("ekfac", "dense"),
    "method.rank": whole(1),
    "method.init": choice("pca", "random"),
    "method.solver.labels": choice("empirical", "sampled"),
    "task.seeds": whole(1),
    "task.score": choice("mean", "self"),
    "task.budgets": SHARES,
    "task.removed": SHARES,
    "task.repeats": whole(1),
    "task.readout": choice("validation", "test"),
    "task.validation": number(above=0, below=1),
    "task.labels": choice("noisy", "clean"),
    "task.restart": choice("fresh", "continued"),
    "task.reverse": FLAG,
    "task.share": number(above=0, at_most=0.5),
    "task.random_sets": whole(2),
    "task.held_out": TEXT,
    "task.documents": COUNTS,
    "task.steps": COUNTS,
    "task.rates": RATES,
    "task.modes": WAYS,
    "task.damage": number(above=0),
    "task.chosen_on": choice("held_out", "reported"),
    "task.ranked_on": choice("reported", "held_out"),
    "task.top": whole(1),
    "task.rival.definitional": WORD_SETS,
    "task.rival.equalized": WORD_SETS,
    "task.rival.specific": list_of(TEXT),
    "task.rival.components": whole(1),
    "retraining.start": choice("scratch", "warm"),
    "retraining.removed": whole(1).or_word("all"),
    "retraining.selection": choice("random", "top", "loss", "percentile", "stratified", "all", "class"),
    "retraining.percentile": number(at_least=0, at_most=100),
    "retraining.index": INDEX,
    "retraining.fraction": number(above=0, below=1),
    "retraining.selection_seed": whole(0).or_null(),
    "retraining.subsets": whole(1),
    "retraining.groups": whole(1),
    "retraining.group_size": whole(1).or_null(),
    "retraining.seeds": whole(1),
    "retraining.vary": choice("both", "init", "order"),
    "retraining.trainable": choice("all", "last_layer"),
    "retraining.epochs": whole(1).or_null(),
    "retraining.divisor": choice("n", "n-1"),
    "retraining.subtract_drift": FLAG,
    "retraining.workers": whole(1),
    "retraining.backend": choice("loky", "ray", "dask"),
    "retraining.cluster": TEXT.or_null(),
    "retraining.models_at_once": whole(1).or_null(),
    "retraining.response": choice("retrain", "proximal", "pbrf", "linear"),
    "retraining.strength": STRENGTH,
    "retraining.proximity": number(at_least=0).or_null(),
    "retraining.tolerance": number(above=0),
    "retraining.max_iterations": whole(1),
    "retraining.keep": choice("measurements", "responses"),
    "logger.files": FLAG,
    "logger.uri": TEXT.or_null(),
    "logger.experiment": TEXT,
    "logger.project": TEXT,
    "logger.entity": TEXT.or_null(),
    "logger.mode": choice("offline", "online", "disabled"),
    "logger.dir": TEXT,
}


def check_value(key: str, value: Any) -> None:
    """Raise `InfluxError` when `value` breaks the rule of the knob at `key`; a key without a rule passes."""
    _check(key, value, RULES.get(key.replace("retraining.solver.", "method.solver.")))  # one rule a solver's knob, wherever the solver is


def check_word(key: str, value: Any, *own: str) -> None:
    """Raise `InfluxError` unless `value` is one of a class's own words for a knob whose rule has those of other classes too."""
    _check(key, value, choice(*own))


def _check(key: str, value: Any, rule: Rule | None) -> None:
    if rule is None or rule.accepts(value):
        return
    hint = nearest(value, rule.choices) if isinstance(value, str) else ""
    raise InfluxError(f"{key}={value} is not possible: it must be {rule.wanted}.{hint}")


def check_config(config: Mapping[str, Any], prefix: str = "") -> None:
    """Check every leaf of a composed configuration (nested plain dictionaries)."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            check_config(value, f"{key}.")
        else:
            check_value(key, value)


GROUPS = ("store", "dataset", "model", "training", "objective", "measurement", "method", "retraining", "task")
SHARED = ("seed", "dtype", "device", "threads", "checkpoints", "pictures", *GROUPS[:6])
NEEDED = {
    "train": SHARED,
    "estimate": (*SHARED, "method", "memory", "top_k", "test_points"),
    "reproduce": ("seed", "store", "scale", "seeds", "settings", "workers", "fresh", "jobs_dir"),
    "validate": (*SHARED, "method", "memory", "top_k", "test_points", "retraining", "loo", "truth", "resamples"),
}


def check_command(config: Mapping[str, Any]) -> None:
    """Raise `InfluxError` when a setting that the command reads was deleted, or a group's settings were replaced by a word."""
    if not isinstance(config.get("logger", {}), Mapping | None):
        raise InfluxError(f"logger={config['logger']} is not possible here: a run is repeated with its own logger (~logger leaves it out).")
    for key in NEEDED[config.get("command", "validate")]:
        if key not in config:
            raise InfluxError(f"the configuration has no '{key}', and influx {config['command']} needs it: leave out ~{key}.")
        if key in GROUPS and not isinstance(config[key], Mapping):
            raise InfluxError(f"{key}={config[key]} is not possible here: change single settings ({key}.<name>=...), or start a new run.")


def check_fields(group: str, instance: Any) -> None:
    """Check a dataclass against the rules of its group (`training`, `method.solver`, ...); call it in `__post_init__`."""
    for field in dataclasses.fields(instance):
        check_value(f"{group}.{field.name}", getattr(instance, field.name))
