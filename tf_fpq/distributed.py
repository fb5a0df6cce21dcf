"""Changing variables inside a training step, under any `tf.distribute` strategy.

A mirrored variable without an aggregation cannot be assigned in a replica: the strategy wants to be
told, in the cross-replica context, what to do with all copies at once. The optimizer does so for
its own updates; these functions do it for the rest.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def assign(variables: Sequence[tf.Variable], values: Sequence[Any]) -> None:
    """Assigns values to variables, from a replica or outside.

    Args:
      variables: Variables; in a strategy, of its scope.
      values: A tensor for each. They must be the same in all replicas, but for variables that are
        kept per replica (the moving statistics of a batch normalization).
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return
    mirrored = []
    for variable, value in zip(variables, values, strict=True):
        if variable.synchronization is tf.VariableSynchronization.ON_READ:
            variable.assign(value)
        else:
            mirrored.append((variable, value))
    if mirrored:
        context.merge_call(_assign_mirrored, args=(mirrored,))


def _assign_mirrored(strategy: tf.distribute.Strategy, pairs: Sequence[tuple[Any, Any]]) -> None:
    for variable, value in pairs:
        strategy.extended.update(
            variable, lambda copy, new: copy.assign(new), args=(value,), group=False
        )


def sum_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sums of each tensor over the replicas of the strategy in scope.

    With one replica they are the tensors themselves.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return list(tensors)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))


def replica_id() -> Any:
    """Number of the replica that computes, from 0; 0 outside of replicas."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def num_replicas() -> int:
    """Number of replicas in sync of the strategy in scope; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def either(condition: tf.Tensor, then: tuple[Any, ...], otherwise: tuple[Any, ...]) -> None:
    """Calls one of two functions that change variables, from a replica or outside.

    A `tf.cond` in a replica may not hold an update by an optimizer, which wants to be in the
    cross-replica context. So the decision is made there, once for all replicas.

    Args:
      condition: A truth value, the same in all replicas.
      then: A function and its arguments, called if the condition holds. What it needs of the
        replica's own tensors must be among the arguments.
      otherwise: A function and its arguments, called if not.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        tf.cond(condition, lambda: _call(*then), lambda: _call(*otherwise))
        return

    def decide(strategy: tf.distribute.Strategy, *arguments: Any) -> None:
        def in_replicas(function: Any, arguments: tuple[Any, ...]) -> tf.Tensor:
            strategy.extended.call_for_each_replica(_call, args=(function, *arguments))
            return tf.zeros([])

        replicas_condition, ours, theirs = arguments
        tf.cond(
            strategy.experimental_local_results(replicas_condition)[0],
            lambda: in_replicas(then[0], ours),
            lambda: in_replicas(otherwise[0], theirs),
        )

    context.merge_call(decide, args=(condition, then[1:], otherwise[1:]))


def _call(function: Any, *arguments: Any) -> tf.Tensor:
    """Calls `function`; both branches of a `tf.cond` must return something."""
    function(*arguments)
    return tf.zeros([])
