"""Placeholder until the owner of this file writes it: overwrite freely."""

import joblib


def _call(work, at, item):
    return at, work(item)


def in_parallel(work, items, *, workers, backend="loky", cluster=None):
    if workers == 1:
        yield from ((at, work(item)) for at, item in enumerate(items))
        return
    yield from joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch=workers)(
        joblib.delayed(_call)(work, at, item) for at, item in enumerate(items)
    )
