"""The faults of one fit: its state, epochs and callbacks, and what is decided before it."""

from fault import Fault

FIT = "tests/test_fit.py::"
FALL_BACK = "tests/test_fall_back.py::"
TRAINING = "tests/test_training.py::"
PROMISES = "tests/test_promises.py::"
ENGINE = "tests/test_engine.py::"
ARGUMENT = FIT + "test_argument"

FAULTS = [
    # the state
    Fault(
        "optimizer-state-lost",
        "kohort/keras_internals.py",
        "        return logs, State(*map(list, new))",
        "        return logs, State(*new)._replace(optimizer_variables=state.optimizer_variables)",
        (f"{FIT}test_optimizer[adam]",),
    ),
    Fault(
        "batch-norm-state-lost",
        "kohort/keras_internals.py",
        "        return logs, State(*map(list, new))",
        "        return logs, State(*new)._replace(non_trainable_variables=state.non_trainable_variables)",
        (f"{FIT}test_layer[True-batch-norm]", f"{FIT}test_layer[False-batch-norm]"),
    ),
    Fault(
        "dropout-state-lost",
        "kohort/keras_internals.py",
        "        return logs, State(*map(list, new))",
        "        kept = [a if a.dtype == 'uint32' else b for a, b in zip(state[1], new[1], strict=True)]\n"
        "        return logs, State(*new)._replace(non_trainable_variables=kept)",
        (f"{FIT}test_layer[True-dropout]", f"{FIT}test_layer[False-dropout]"),
    ),
    Fault(
        "state-not-written-back",
        "kohort/keras_internals.py",
        "    for part, values in zip(variables, state, strict=True):\n        attach_to(",
        "    for part, values in zip(variables[:2], state[:2], strict=True):\n        attach_to(",
        (f"{FIT}test_optimizer[adam]",),
    ),
    Fault(
        "validation-trains",
        "kohort/keras_internals.py",
        "        logs, (trainable, non_trainable, metrics) = alive().test_step((state[0], state[1], state[3]), batch)",
        "        logs, (trainable, non_trainable, _, metrics) = alive().train_step(tuple(state), batch)",
        (f"{ARGUMENT}[validation-data]",),
    ),
    Fault(
        "metrics-not-reset",
        "kohort/engine.py",
        "    fresh = functions.reset_metrics(state)\n",
        "    fresh = state\n",
        (f"{ARGUMENT}[default-batch]",),
    ),
    Fault(
        "ema-not-applied",
        "kohort/training.py",
        "                model.optimizer.finalize_variable_values(model.trainable_weights)\n",
        "",
        (f"{FIT}test_optimizer[ema-at-end]",),
    ),
    # the epochs
    Fault(
        "epoch-too-few",
        "kohort/training.py",
        "while epoch < self.recipe.epochs and not interrupt:",
        "while epoch < self.recipe.epochs - 1 and not interrupt:",
        (f"{ARGUMENT}[initial-epoch]",),
    ),
    Fault(
        "epoch-too-many",
        "kohort/training.py",
        "while epoch < self.recipe.epochs and not interrupt:",
        "while epoch < self.recipe.epochs + 1 and not interrupt:",
        (f"{ARGUMENT}[initial-epoch]",),
    ),
    Fault(
        "initial-epoch-ignored",
        "kohort/keras_internals.py",
        "return model._initial_epoch or initial_epoch",
        "return model._initial_epoch or 0",
        (f"{ARGUMENT}[initial-epoch]",),
    ),
    Fault(
        "wrong-epoch-numbers",
        "kohort/training.py",
        "self.model.history.epoch.extend(range(epoch, epoch + count))",
        "self.model.history.epoch.extend(range(epoch + 1, epoch + count + 1))",
        (f"{ARGUMENT}[initial-epoch]",),
    ),
    Fault(
        "metrics-of-layers-overlooked",
        "kohort/fit.py",
        "layer = keras_parts.layer_with_metrics(model)",
        "layer = None",
        ("tests/test_fall_back.py::test_a_layer_with_a_metric_of_its_own",),
    ),
    Fault(
        "logs-of-the-wrong-epoch",
        "kohort/engine.py",
        "lax.dynamic_update_index_in_dim(h, log, e, 0), carry[1], logs)",
        "lax.dynamic_update_index_in_dim(h, log, jnp.maximum(e - 1, 0), 0), carry[1], logs)",
        (f"{ENGINE}test_batches_come_in_the_order_of_the_schedule", f"{FIT}test_many_epochs_over_several_calls"),
    ),
    Fault(
        "validation-in-every-epoch",
        "kohort/epochs.py",
        "if data.validation is None or recipe.validation_freq == 1:",
        "if data.validation is None or recipe.validation_freq:",
        (f"{ARGUMENT}[validation-freq]", f"{ARGUMENT}[validation-freq-list]"),
    ),
    Fault(
        "validation-one-epoch-early",
        "kohort/keras_internals.py",
        "return keras.Model._should_eval(no_model, epoch, frequency)",
        "return keras.Model._should_eval(no_model, epoch + 1, frequency)",
        (f"{ARGUMENT}[validation-freq]",),
    ),
    # callbacks
    Fault(
        "stale-learning-rate",
        "kohort/training.py",
        "            raise\n        self._read_state(before)",
        "            raise\n"
        "        self._read_state(before)\n"
        "        self.state = self.state._replace(optimizer_variables=before.optimizer_variables)",
        (f"{FALL_BACK}test_callbacks_at_epochs_run_compiled[schedule]",),
    ),
    Fault(
        "weights-of-callbacks-ignored",
        "kohort/training.py",
        "            raise\n        self._read_state(before)",
        "            raise\n        self.state = before",
        (f"{FALL_BACK}test_callbacks_at_epochs_run_compiled[several]",),
    ),
    Fault(
        "callbacks-see-the-epoch-before",
        "kohort/training.py",
        "        keras_internals.attach(self.variables, self.state)\n        self.finished = epoch + 1\n"
        "        with interrupt.opened(presses=2):\n            self.callbacks.on_epoch_end(epoch, self.logs)\n",
        "        self.callbacks.on_epoch_end(epoch, self.logs)\n"
        "        keras_internals.attach(self.variables, self.state)\n",
        (f"{FALL_BACK}test_callbacks_see_what_keras_shows_them",),
    ),
    Fault(
        "callbacks-in-the-wrong-order",
        "kohort/training.py",
        "            self.callbacks = keras.callbacks.CallbackList(\n                callbacks,",
        "            self.callbacks = keras.callbacks.CallbackList(\n"
        "                callbacks[::-1] if isinstance(callbacks, list) else callbacks,",
        (f"{FALL_BACK}test_callbacks_at_epochs_run_compiled[several]",),
    ),
    Fault(
        "stop-training-ignored",
        "kohort/training.py",
        "                    if model.stop_training:\n                        break\n",
        "",
        (f"{FALL_BACK}test_callbacks_at_epochs_run_compiled[stop]",),
    ),
    Fault(
        "best-weights-not-restored",
        "kohort/training.py",
        "        self.callbacks.on_train_end(self.logs)\n",
        "        state = keras_internals.read_state(model)\n"
        "        self.callbacks.on_train_end(self.logs)\n"
        "        keras_internals.write_state(model, state)\n",
        (
            f"{FALL_BACK}test_callbacks_at_epochs_run_compiled[best-weights]",
            f"{FALL_BACK}test_best_weights_are_restored",
        ),
    ),
    Fault(
        "end-of-training-not-told",
        "kohort/training.py",
        "        self.callbacks.on_train_end(self.logs)\n",
        "",
        (f"{FALL_BACK}test_callbacks_see_what_keras_shows_them",),
    ),
    Fault(
        "epoch-ends-without-a-finite-loss",
        "kohort/epochs.py",
        "return self._until_not_finite(state, schedule, interrupt)",
        "return trained",
        (f"{TRAINING}test_terminate_on_nan_stops_at_its_batch[0.0-9-1]",),
    ),
    Fault(
        "loss-not-finite-seen-a-batch-late",
        "kohort/epochs.py",
        "finite, last = (middle, last) if np.isfinite",
        "finite, last = (middle, last) if middle + 1 < last or np.isfinite",
        (f"{TRAINING}test_terminate_on_nan_stops_at_its_batch[0.0-9-1]",),
    ),
    Fault(
        "checkpoints-of-the-epoch-before",
        "kohort/training.py",
        "        keras_internals.attach(self.variables, self.state)\n        self.finished = epoch + 1\n"
        "        with interrupt.opened(presses=2):\n            self.callbacks.on_epoch_end(epoch, self.logs)\n",
        "        self.callbacks.on_epoch_end(epoch, self.logs)\n"
        "        keras_internals.attach(self.variables, self.state)\n",
        (f"{TRAINING}test_a_callback[checkpoint]",),
    ),
    Fault(
        "half-an-epoch-kept-at-ctrl-c",
        "kohort/training.py",
        "            keras_internals.attach(self.variables, before)\n            return 0",
        "            return 0",
        (f"{TRAINING}test_ctrl_c_between_pieces_leaves_the_last_finished_epoch[after-the-second]",),
    ),
    # falling back
    Fault(
        "batches-to-write-counted-from-the-save",
        "kohort/keras_callbacks.py",
        "callback._global_train_batch % callback.update_freq",
        "0",
        ("tests/test_tensorboard.py::test_tensorboard_that_writes_after_so_many_batches[some]",),
    ),
    Fault(
        "hooks-of-ones-own-not-called",
        "kohort/keras_callbacks.py",
        "return all(hook in IDLE for hook in hooks) and",
        "return",
        ("tests/test_tensorboard.py::test_hooks_of_ones_own_at_each_batch_are_called_by_keras",),
    ),
    Fault(
        "functions-excused-by-their-names",
        "kohort/python_code.py",
        'return None if is_kerass(written_in) else f"`{thing.__qualname__}`"',
        'return None if thing.__name__ in NOT_AT_STEPS or is_kerass(written_in) else f"`{thing.__qualname__}`"',
        ("tests/test_python_code.py::test_code_of_somebody_else",),
    ),
    Fault(
        "validation-not-counted-in-batches",
        "kohort/training.py",
        "callback.on_test_batch_begin(step)",
        "pass",
        ("tests/test_tensorboard.py::test_tensorboard_that_writes_after_so_many_batches[several-steps]",),
    ),
    Fault(
        "checkpoints-inside-an-epoch-not-saved",
        "kohort/keras_callbacks.py",
        'return is_keras_own and callback.save_freq == "epoch"',
        "return is_keras_own",
        (f"{FALL_BACK}test_checkpoints_inside_an_epoch",),
    ),
    Fault(
        "fall-back-without-a-warning",
        "kohort/fit.py",
        '    warnings.warn(f"kohort: Keras runs this fit itself, because {reason}.", FallBackWarning, stacklevel=2)\n',
        "",
        (f"{FALL_BACK}test_run_eagerly",),
    ),
    Fault(
        "batch-callbacks-not-called",
        "kohort/fit.py",
        'return f"the callback {type(callback).__name__} acts inside an epoch (`{hook}`)"',
        "return None",
        (f"{FALL_BACK}test_a_callback_that_changes_the_training_inside_an_epoch",),
    ),
    Fault(
        "own-evaluate-ignored",
        "kohort/keras_internals.py",
        'names = ["evaluate", "make_train_function", "make_test_function"]',
        'names = ["make_train_function", "make_test_function"]',
        (f"{FALL_BACK}test_a_model_with_a_method_of_its_own",),
    ),
    # steps that Keras runs operation by operation
    Fault(
        "operations-are-merged",
        "kohort/rounding.py",
        'inlineable="false"',
        'other="false"',
        ("tests/test_rounding.py::test_op_by_op_keeps_what_runs_as_one_program_together",),
    ),
    Fault(
        "changed-settings-go-unseen",
        "kohort/programs.py",
        " and self._settings == settings_of(model)",
        "",
        ("tests/test_python_code.py::test_programs_last_as_long_as_the_settings",),
    ),
    # compiled once, nothing lost
    Fault(
        "compiled-at-every-fit",
        "kohort/programs.py",
        "        if key not in self._made:\n            self._made[key] = make()",
        "        self._made[key] = make()",
        (f"{PROMISES}test_a_second_fit_compiles_nothing",),
    ),
    Fault(
        "old-programs-after-compile",
        "kohort/programs.py",
        "if type(known) is not kind or not known.is_of(model):",
        "if type(known) is not kind:",
        (f"{PROMISES}test_compiling_the_model_anew_makes_new_programs",),
    ),
    Fault(
        "interrupted-state-lost",
        "kohort/training.py",
        "half-way.\n                if not self.has_callbacks:\n",
        "half-way.\n                if not (self.has_callbacks or interrupt):\n",
        (f"{PROMISES}test_interrupt_leaves_the_model_at_the_end_of_an_epoch",),
    ),
    # what is shown
    Fault(
        "bars-drawn-into-files",
        "kohort/progress.py",
        "        if self.verbose == 1 and shows_bars():",
        "        if self.verbose == 1:",
        ("tests/test_progress.py::test_in_a_file_there_is_a_plain_line_now_and_then",),
    ),
    Fault(
        "rate-of-compiling-told",
        "kohort/progress.py",
        "math.inf if is_mostly_compiling else BAR_SECONDS",
        "BAR_SECONDS",
        ("tests/test_progress.py",),
    ),
    Fault(
        "ctrl-c-says-nothing",
        "kohort/progress.py",
        "        return KeyboardInterrupt(text)",
        "        return error",
        ("tests/test_progress.py::test_ctrl_c_says_what_is_left",),
    ),
    # the switch
    Fault(
        "uninstall-forgets-to-restore",
        "kohort/accelerate.py",
        "                delattr(keras.Model, name)\n",
        "                pass\n",
        ("tests/test_accelerate.py::test_to_install_twice_is_an_error",),
    ),
    Fault(
        "evaluation-leaves-no-metrics",
        "kohort/passes.py",
        "keras_internals.write_state(model, state)",
        "del state",
        ("tests/test_passes.py::test_a_pass_gives_what_keras_gives_and_leaves_what_it_leaves[plain]",),
    ),
    Fault(
        "strict-is-ignored",
        "kohort/accelerate.py",
        "if settings.strict:",
        "if not settings:",
        ("tests/test_accelerate.py::test_an_error_leaves_everything_as_it_was",),
    ),
    Fault(
        "blocks-do-not-restore",
        "kohort/accelerate.py",
        "        _switch(self._before)",
        "        _switch(None)",
        ("tests/test_switched_on.py::test_a_script_that_is_run_unchanged_may_install_kohort_itself",),
    ),
    Fault(
        "refused-fits-use-up-free-shapes",
        "kohort/accelerate.py",
        "    if reason is None:\n        shapes_of(model).compile(request)\n",
        "    shapes_of(model).compile(request)\n",
        ("tests/test_switched_on.py::test_what_is_refused_uses_up_no_free_shape",),
    ),
    Fault(
        "no-averages-after-an-error",
        "kohort/training.py",
        "                if not interrupt:\n                    model.optimizer",
        "                if not interrupt and epoch >= self.recipe.epochs:\n                    model.optimizer",
        ("tests/test_training.py::test_an_error_in_a_callback_leaves_what_keras_leaves",),
    ),
    Fault(
        "callbacks-deaf-to-ctrl-c",
        "kohort/training.py",
        "        with interrupt.opened(presses=2):\n            self.callbacks.on_epoch_end(epoch, self.logs)",
        "        self.callbacks.on_epoch_end(epoch, self.logs)",
        ("tests/test_training.py::test_ctrl_c_ends_a_callback_that_waits",),
    ),
    Fault(
        "fall-backs-counted-as-compiled",
        "kohort/report.py",
        "sum(row.calls for row in self if row.way != KERAS)",
        "self.calls",
        ("tests/test_report.py",),
    ),
    Fault(
        "own-steps-keep-their-tuples",
        "kohort/keras_internals.py",
        "        return logs, State(*map(list, new))",
        "        return logs, State(*new)",
        ("tests/test_features.py::test_steps_of_its_own[OwnStepInTuples]",),
    ),
    Fault(
        "verify-leaves-a-failed-fit-in-the-model",
        "kohort/verify.py",
        "    finally:",
        "    except TimeoutError:",
        ("tests/test_verify.py::test_a_compiled_fit_that_fails_leaves_the_model_as_it_was",),
    ),
    Fault(
        "load-ext-changes-the-backend",
        "kohort/backend.py",
        "    if _is_loaded_by_ipython():",
        "    if False:",
        ("tests/test_main.py::test_a_notebook_keeps_the_backend_that_its_code_was_written_for",),
    ),
    Fault(
        "refusals-looked-for-again",
        "kohort/blueprint.py",
        "        _checked[model] = marker, str(error)\n",
        "",
        ("tests/test_blueprint.py::test_what_was_refused_is_not_looked_at_again_until_it_is_compiled_anew",),
    ),
    Fault(
        "operations-kept-apart-on-a-gpu",
        "kohort/rounding.py",
        'if jax.default_backend() != "cpu":',
        "if not args:",
        ("tests/test_gpu.py::test_the_program_of_many_members_is_made_for_a_gpu",),
    ),
]
