"""The faults: each a replacement of text in one file of kohort, and the tests that have to notice it.

The old text must be there exactly once. Whoever changes such a line changes it here, too.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One deliberate fault."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FIT = "tests/test_fit.py::"
FALL_BACK = "tests/test_fall_back.py::"
COHORT = "tests/test_cohort.py::"
TRAINING = "tests/test_training.py::"
STREAM = "tests/test_stream.py::"
PROMISES = "tests/test_promises.py::"
ENGINE = "tests/test_engine.py::"
VARY = "tests/test_vary.py::"
FOLDS = "tests/test_folds.py::"
ENSEMBLE = "tests/test_ensemble.py::"
FILES = "tests/test_files.py::"
SAVING = "tests/test_saving.py::"
CALLBACKS = "tests/test_cohort_callbacks.py::"
ARGUMENT = FIT + "test_argument"

FAULTS = [
    # what goes in
    Fault(
        "sample-weights-ignored",
        "kohort/data.py",
        "training = _converted(x, y, sample_weight, recipe.class_weight)",
        "training = _converted(x, y, None, recipe.class_weight)",
        (f"{ARGUMENT}[sample-weight]",),
    ),
    Fault(
        "class-weights-ignored",
        "kohort/data.py",
        "training = _converted(x, y, sample_weight, recipe.class_weight)",
        "training = _converted(x, y, sample_weight)",
        (f"{ARGUMENT}[class-weight]",),
    ),
    Fault(
        "validation-weights-ignored",
        "kohort/data.py",
        "validation = _converted(*(*validation_data, None)[:3])",
        "validation = _converted(*validation_data[:2], None)",
        (f"{ARGUMENT}[validation-weights]",),
    ),
    Fault(
        "validation-on-training-data",
        "kohort/data.py",
        "return Inputs(training, cut, *validation_inputs(validation_data, recipe, steps), build_iterator)",
        "return Inputs(training, cut, *validation_inputs((x, y, sample_weight), recipe, steps), build_iterator)",
        (f"{ARGUMENT}[validation-data]",),
    ),
    Fault(
        "validation-rows-train-too",
        "kohort/data.py",
        "(x, y, sample_weight), validation_data = parts",
        "_, validation_data = parts",
        (f"{ARGUMENT}[validation-split]",),
    ),
    Fault(
        "validation-batch-size-ignored",
        "kohort/data.py",
        "batch_size = recipe.validation_batch_size or recipe.batch_size",
        "batch_size = recipe.batch_size",
        (f"{ARGUMENT}[validation-batch]", f"{ARGUMENT}[validation-steps]"),
    ),
    Fault(
        "validation-steps-ignored",
        "kohort/data.py",
        "pass_cut(rows, batch_size, recipe.validation_steps, steps_per_execution)",
        "pass_cut(rows, batch_size)",
        (f"{ARGUMENT}[validation-steps]",),
    ),
    Fault(
        "steps-per-epoch-ignored",
        "kohort/data.py",
        "steps_per_epoch=self._recipe.steps_per_epoch,",
        "steps_per_epoch=None,",
        (f"{ARGUMENT}[steps]",),
    ),
    # members abreast
    Fault(
        "term-of-a-product-left-out",
        "kohort/abreast.py",
        "(left[term] * right[term] for term in terms))",
        "(left[term] * right[term] for term in list(terms)[:-1] or [()]))",
        ("tests/test_abreast.py::test_as_vmap[matrix-matrix-None]",),
    ),
    Fault(
        "members-axis-mixed-with-rows",
        "kohort/engine.py",
        "lambda a: jnp.moveaxis(a, 1, -1), batch) if rows.ndim == 2",
        "lambda a: jnp.moveaxis(a, 0, -1), batch) if rows.ndim == 2",
        ("tests/test_abreast.py::test_a_program_of_members_abreast_trains_as_the_mapped_one[middle0-True]",),
    ),
    # the order of the batches
    Fault(
        "no-shuffling",
        "kohort/data.py",
        "rows[:count] = permutations(generator, self.cut.rows, count)",
        "permutations(generator, self.cut.rows, count)\n            rows[:count] = np.arange(self.cut.rows)",
        (f"{ARGUMENT}[default-batch]",),
    ),
    Fault(
        "shuffled-unasked",
        "kohort/data.py",
        "return bool(self.shuffle) or not self.is_plain",
        "return True",
        (f"{ARGUMENT}[no-shuffle]",),
    ),
    Fault(
        "wrong-order-of-batches",
        "kohort/data.py",
        "rows[:count] = permutations(generator, self.cut.rows, count)",
        "rows[:count] = permutations(generator, self.cut.rows, count)[:, ::-1]",
        (f"{ARGUMENT}[one-full-one-partial]",),
    ),
    Fault(
        "small-permutations-wrong",
        "kohort/generators.py",
        "for i, pick in zip(range(rows - 1, 0, -1), picks, strict=True):",
        "for i, pick in zip(range(1, rows), picks, strict=True):",
        ("tests/test_data.py::test_permutations_are_numpys",),
    ),
    Fault(
        "same-order-in-each-epoch",
        "kohort/generators.py",
        "        shuffled = ordered.copy()\n        generator.shuffle(shuffled)\n        row[:] = shuffled\n",
        "        row[:] = ordered\n    generator.shuffle(drawn[0])\n    drawn[:] = drawn[0]\n",
        (f"{FIT}test_many_epochs_over_several_calls",),
    ),
    Fault(
        "partial-batch-dropped",
        "kohort/engine.py",
        "    if cut.partial:\n        carry = loop(",
        "    if cut.partial and not cut.full:\n        carry = loop(",
        (f"{ENGINE}test_batches_come_in_the_order_of_the_schedule",),
    ),
    Fault(
        "wrong-last-batch",
        "kohort/engine.py",
        "else partial, cut.full * cut.batch_size, cut.partial, carry)",
        "else partial, cut.full * cut.batch_size - 1, cut.partial, carry)",
        (f"{ENGINE}test_batches_come_in_the_order_of_the_schedule",),
    ),
    Fault(
        "first-batch-every-time",
        "kohort/engine.py",
        "return read(unknown.slice_of(rows, i, first + i * size, size))",
        "return read(unknown.slice_of(rows, i, first, size))",
        (f"{ARGUMENT}[no-partial]",),
    ),
    Fault(
        "batch-merged-into-its-step",
        "kohort/engine.py",
        "return step(*carried), batch(i + 1)",
        "return step(carried[0], batch(i)), carried[1]",
        (f"{FIT}test_a_validation_of_one_batch_rounds_as_keras_does",),
    ),
    Fault(
        "generator-in-the-wrong-state",
        "kohort/epochs.py",
        "            schedule = self._draw(len(epochs))._replace(validates=validates)",
        "            schedule = self._draw(len(epochs))._replace(validates=validates)\n            np.random.random()",
        (f"{ARGUMENT}[no-shuffle]",),
    ),
    Fault(
        "no-batch-read-to-build",
        "kohort/keras_internals.py",
        "            model._symbolic_build(iterator=iterator)\n",
        "            generator = np.random.get_state()\n"
        "            model._symbolic_build(iterator=iterator)\n"
        "            np.random.set_state(generator)\n",
        (f"{FIT}test_model_that_is_built_by_the_fit",),
    ),
    Fault(
        "owed-draws-forgotten",
        "kohort/generators.py",
        "owed = [(rows, np.broadcast_to(times, len(states))) for rows, times in self._owed]",
        "owed = [(rows, np.broadcast_to(times, len(states))) for rows, times in self._owed[-1:]]",
        ("tests/test_data.py::test_permutations_that_are_owed_are_drawn_when_somebody_looks",),
    ),
    Fault(
        "owed-draws-not-added-up",
        "kohort/generators.py",
        "Owed(rows, last.times + count)",
        "Owed(rows, count)",
        ("tests/test_data.py::test_permutations_that_are_owed_are_drawn_when_somebody_looks",),
    ),
    Fault(
        "owed-draw-to-build-forgotten",
        "kohort/rounds.py",
        "return trained._replace(generators=trained.generators.owing(self.data.cut.rows, 1))",
        "return trained",
        (f"{COHORT}test_an_order_that_nobody_sees_is_drawn_when_somebody_looks",),
    ),
    Fault(
        "dropout-taken-for-blind-to-row-order",
        "kohort/keras_parts.py",
        '    "keras.src.layers.reshaping.flatten",\n',
        '    "keras.src.layers.reshaping.flatten",\n    "keras.src.layers.regularization.",\n',
        ("tests/test_keras_parts.py::test_who_sees_the_order_of_rows",),
    ),
    Fault(
        "losses-taken-for-blind-to-row-order",
        "kohort/keras_parts.py",
        "return _goes_row_by_row(model) and all(map(_is_keras_own, judges))",
        "return _goes_row_by_row(model)",
        ("tests/test_keras_parts.py::test_operations_and_losses_that_see_the_order_of_rows",),
    ),
    # streams
    Fault(
        "stream-batches-skipped",
        "kohort/stream.py",
        "for batch in batches:\n                        work.add(batch)",
        "for batch in batches if nth != 1 else ():\n                        work.add(batch)",
        (f"{STREAM}test_a_stream_leaves_what_keras_leaves[dataset]",),
    ),
    Fault(
        "stream-stack-lost-at-another-shape",
        "kohort/stream.py",
        "self._stack.mould.form != form:\n            self._run_stack()",
        "self._stack.mould.form != form:\n            self._stack = None",
        (f"{STREAM}test_several_batches_go_into_one_call",),
    ),
    Fault(
        "stream-class-weights-ignored",
        "kohort/stream.py",
        'options = {"shuffle": recipe.shuffle, "class_weight": recipe.class_weight}',
        'options = {"shuffle": recipe.shuffle}',
        (f"{STREAM}test_a_stream_leaves_what_keras_leaves[class-weights]",),
    ),
    Fault(
        "stream-validated-from-where-it-was",
        "kohort/stream.py",
        "        self.iterator.reset()\n        return self._pass(state, interrupt) or",
        "        return self._pass(state, interrupt) or",
        (f"{STREAM}test_a_stream_leaves_what_keras_leaves[validation-steps]",),
    ),
    Fault(
        "stream-trains-on-without-a-finite-loss",
        "kohort/stream.py",
        "if watched and not work.is_finite():",
        "if watched and not work:",
        (f"{STREAM}test_a_watched_epoch_ends_where_its_loss_is_not_finite[1-2]",),
    ),
    # the state
    Fault(
        "optimizer-state-lost",
        "kohort/keras_internals.py",
        "        return logs, State(*new)",
        "        return logs, State(*new)._replace(optimizer_variables=state.optimizer_variables)",
        (f"{FIT}test_optimizer[adam]",),
    ),
    Fault(
        "batch-norm-state-lost",
        "kohort/keras_internals.py",
        "        return logs, State(*new)",
        "        return logs, State(*new)._replace(non_trainable_variables=state.non_trainable_variables)",
        (f"{FIT}test_layer[True-batch-norm]", f"{FIT}test_layer[False-batch-norm]"),
    ),
    Fault(
        "dropout-state-lost",
        "kohort/keras_internals.py",
        "        return logs, State(*new)",
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
        "logs-of-the-wrong-epoch",
        "kohort/engine.py",
        "return after, jax.tree.map(lambda h, log: h.at[e].set(log), carry[1], logs)",
        "return after, jax.tree.map(lambda h, log: h.at[jnp.maximum(e - 1, 0)].set(log), carry[1], logs)",
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
        "        self.callbacks.on_epoch_begin(epoch)\n        self._read_state(before)",
        "        self.callbacks.on_epoch_begin(epoch)\n"
        "        self._read_state(before)\n"
        "        self.state = self.state._replace(optimizer_variables=before.optimizer_variables)",
        (f"{FALL_BACK}test_callbacks_at_epochs_run_compiled[schedule]",),
    ),
    Fault(
        "weights-of-callbacks-ignored",
        "kohort/training.py",
        "        self.callbacks.on_epoch_begin(epoch)\n        self._read_state(before)",
        "        self.callbacks.on_epoch_begin(epoch)\n        self.state = before",
        (f"{FALL_BACK}test_callbacks_at_epochs_run_compiled[several]",),
    ),
    Fault(
        "callbacks-see-the-epoch-before",
        "kohort/training.py",
        "        keras_internals.attach(self.variables, self.state)\n"
        "        self.callbacks.on_epoch_end(epoch, self.logs)\n",
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
        "        keras_internals.attach(self.variables, self.state)\n"
        "        self.callbacks.on_epoch_end(epoch, self.logs)\n",
        "        self.callbacks.on_epoch_end(epoch, self.logs)\n"
        "        keras_internals.attach(self.variables, self.state)\n",
        (f"{TRAINING}test_a_callback[checkpoint]",),
    ),
    # falling back
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
    # cohorts
    Fault(
        "seed-of-the-neighbour",
        "kohort/members.py",
        "initial(tuple(self.seeds[member] for member in lanes), values)",
        "initial(tuple(self.seeds[member - 1] for member in lanes), values)",
        (f"{COHORT}test_initial_state_is_bit_for_bit_keras[dense]",),
    ),
    Fault(
        "batch-order-of-the-neighbour",
        "kohort/rounds.py",
        "for of_lot, its_rows in zip(own, rows, strict=False):",
        "for of_lot, its_rows in zip(own[::-1], rows, strict=False):",
        (f"{COHORT}test_member_is_keras_to_rounding[dense]",),
    ),
    Fault(
        "padding-leaks-into-results",
        "kohort/members.py",
        "own = [array[: len(block.members)] for",
        "own = [array[-len(block.members) :] for",
        (f"{COHORT}test_cohort_of_many_equals_cohorts_of_one[False]",),
    ),
    Fault(
        "state-of-another-member",
        "kohort/members.py",
        "jax.tree.map(lambda a: a[lane], trained.states[block])",
        "jax.tree.map(lambda a: a[0], trained.states[block])",
        (f"{COHORT}test_member_is_keras_to_rounding[dense]",),
    ),
    Fault(
        "members-mixed",
        "kohort/rounds.py",
        "columns = self._columns([[logs for _, logs in own] for own in of_lots], len(epochs))\n",
        "columns = self._columns([[logs for _, logs in own] for own in of_lots], len(epochs))\n"
        "        columns = jax.tree.map(lambda a: a - a.mean(0) + a[:1], columns)\n",
        (f"{COHORT}test_diverged_member_leaves_its_neighbours",),
    ),
    Fault(
        "second-fit-begins-anew",
        "kohort/rounds.py",
        "if members.trained else self._begin()",
        "if not members else self._begin()",
        (f"{COHORT}test_arguments_of_fit_and_a_second_fit",),
    ),
    Fault(
        "film-one-epoch-late",
        "kohort/cohort_callbacks.py",
        "self._done = epoch + 1",
        "self._done = epoch",
        ("tests/test_plot_film.py::test_a_cohorts_film_is_what_keras_answers_at_these_epochs",),
    ),
    # cohorts that vary and validate
    Fault(
        "value-of-another-member",
        "kohort/members.py",
        "values = {path: column[lanes] for path",
        "values = {path: column[lanes[::-1]] for path",
        (f"{VARY}test_member_is_keras_to_rounding[l1]",),
    ),
    Fault(
        "learning-rate-of-the-model",
        "kohort/vary.py",
        "optimizer[place] = jnp.asarray(values[path], optimizer[place].dtype)",
        "optimizer[place] = optimizer[place]",
        (f"{VARY}test_member_is_keras_to_rounding[learning-rate]",),
    ),
    Fault(
        "members-without-dropout-among-those-with",
        "kohort/vary.py",
        "v if exact else np.sign(v)",
        "v if exact else 0 * v",
        (f"{VARY}test_the_order_of_members_is_that_of_the_seeds_whatever_their_kind",),
    ),
    Fault(
        "answers-of-one-member-for-all",
        "kohort/number.py",
        "if (answers != first).any():",
        "if not answers.size:",
        (f"{VARY}test_what_python_must_know_is_refused_unless_each_value_is_compiled",),
    ),
    Fault(
        "numbers-stay-in-the-layers",
        "kohort/number.py",
        "for part, number in zip(parts, kept, strict=True):",
        "for part, number in zip(parts, kept[:0], strict=False):",
        (f"{VARY}test_going_on_and_the_model_left_alone",),
    ),
    Fault(
        "trains-on-the-rows-of-another-fold",
        "kohort/rounds.py",
        "self.shares.training[lot.members[number]]\n        room",
        "self.shares.training[lot.members[number] - 1]\n        room",
        (f"{FOLDS}test_exact_member_is_bit_for_bit_keras_on_its_rows[shuffled]",),
    ),
    Fault(
        "validates-on-the-first-rows",
        "kohort/rounds.py",
        "validation_rows=self._validation_rows(lot, block))",
        "validation_rows=None)",
        (f"{FOLDS}test_exact_member_is_bit_for_bit_keras_on_its_rows[shuffled]",),
    ),
    Fault(
        "weights-of-another-member",
        "kohort/rounds.py",
        "weights = self.shares.weights[lot.members[block.members]]",
        "weights = self.shares.weights[lot.members[block.members[::-1]]]",
        (f"{FOLDS}test_each_member_with_weights_of_its_own[False-None]",),
    ),
    Fault(
        "all-draw-the-same-bootstrap",
        "kohort/folds.py",
        "random_state=seed))",
        "random_state=0))",
        (f"{FOLDS}test_bootstrap_is_keras_on_rows_drawn_by_the_seed",),
    ),
    Fault(
        "out-of-fold-by-one-who-has-seen-it",
        "kohort/folds.py",
        "return by_fold[:, fold_of, ",
        "return by_fold[:, fold_of - 1, ",
        (f"{FOLDS}test_out_of_fold_predictions_are_those_of_the_member_that_has_not_seen_the_sample",),
    ),
    # cohorts, afterwards
    Fault(
        "diverged-members-count-as-solved",
        "kohort/history.py",
        'return last <= bound if direction == "down" else last >= bound',
        'return ~(last > bound) if direction == "down" else ~(last < bound)',
        ("tests/test_history.py",),
    ),
    Fault(
        "diverged-members-not-counted",
        "kohort/history.py",
        "k, n = int(met.sum()), int(met.size)",
        "k, n = int(met.sum()), max(1, int(met.size) - 1)",
        ("tests/test_history.py",),
    ),
    Fault(
        "best-is-the-diverged-one",
        "kohort/results.py",
        "finite = np.flatnonzero(np.isfinite(last))",
        "finite = np.flatnonzero(~np.isfinite(last))",
        (f"{COHORT}test_best_passes_over_diverged_members",),
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
    # what comes out
    Fault(
        "ensemble-of-the-worst",
        "kohort/results.py",
        "best, is_seed_name = ranked[: int(top)]",
        "best, is_seed_name = ranked[-int(top) :]",
        (f"{ENSEMBLE}test_the_best_members_are_taken",),
    ),
    Fault(
        "logits-averaged",
        "kohort/ensemble.py",
        "    if kind is None:\n        return keras.layers.Average",
        "    if kind != 0:\n        return keras.layers.Average",
        (f"{ENSEMBLE}test_of_logits_the_probabilities_are_averaged",),
    ),
    Fault(
        "stopped-members-never-solve-it",
        "kohort/survival.py",
        "np.where(is_stopped, _last_epochs(epochs, recorded), epochs[-1])",
        "np.where(is_diverged, _last_epochs(epochs, recorded), epochs[-1])",
        ("tests/test_survival.py::test_who_stopped_early_is_censored_there_and_who_diverged_never_solves_it",),
    ),
    Fault(
        "pairs-of-different-seeds",
        "kohort/results.py",
        "pairs = [(i, theirs.seeds.index(seed)) for",
        "pairs = [(i, i) for",
        ("tests/test_results.py::test_cohorts_are_compared_on_the_seeds_that_they_share",),
    ),
    # files
    Fault(
        "files-written-in-their-place",
        "kohort/files.py",
        'aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")',
        "aside = target",
        (f"{FILES}test_kills_during_saves_leave_a_whole_file", f"{FILES}test_what_is_written_is_read"),
    ),
    Fault(
        "checksum-not-looked-at",
        "kohort/files.py",
        "HEAD], rest) != checksum:",
        'HEAD], rest) == b"":',
        (f"{FILES}test_any_flipped_bit_is_noticed",),
    ),
    Fault(
        "newer-files-are-read",
        "kohort/files.py",
        'if note["version"] > newest:',
        'if note["version"] < 0:',
        (f"{FILES}test_a_newer_version_and_another_kind",),
    ),
    Fault(
        "any-class-is-built",
        "kohort/saving.py",
        "        if not _is_part_of_keras(module, name):",
        "        if not module:",
        (f"{SAVING}test_a_model_of_other_parts_is_not_built",),
    ),
    Fault(
        "sizes-not-looked-at",
        "kohort/saving.py",
        "if not members or expected != found or",
        "if not members or",
        (f"{SAVING}test_arrays_that_are_not_those_of_the_model",),
    ),
    Fault(
        "generators-not-kept",
        "kohort/saving.py",
        'restored(members.seeds, arrays.get("generators"), owed)',
        "restored(members.seeds, None, owed)",
        (f"{SAVING}test_a_fit_goes_on_where_it_stopped[dense-small-True]",),
    ),
    Fault(
        "what-is-owed-is-not-kept",
        "kohort/saving.py",
        'for rows, times in about["owed"]',
        'for rows, times in about["owed"][:0]',
        (f"{SAVING}test_a_fit_goes_on_where_it_stopped[dense-whole-False]",),
    ),
    Fault(
        "exclusions-from-decay-not-kept",
        "kohort/saving.py",
        '    keras_parts.set_decay_exclusions(model, about["decay_exclusions"])\n',
        "",
        (f"{SAVING}test_a_fit_goes_on_where_it_stopped[undecayed-small-True]",),
    ),
    # callbacks of a cohort
    Fault(
        "patience-is-one-more",
        "kohort/rules.py",
        'stops = is_due & ~improves & (wait >= numbers["patience"])',
        'stops = is_due & ~improves & (wait > numbers["patience"])',
        ("tests/test_rules.py",),
    ),
    Fault(
        "best-weights-are-the-last",
        "kohort/rules.py",
        "weights = chosen(is_due & improves, self._weights(seen.state), memory.weights)",
        "weights = chosen(is_due, self._weights(seen.state), memory.weights)",
        ("tests/test_rules.py",),
    ),
    Fault(
        "numbers-of-32-bits",
        "kohort/rules.py",
        "result = function(wide, lax.bitcast_convert_type(number, jnp.float64))",
        "result = function(wide, lax.bitcast_convert_type(number, jnp.float64).astype(jnp.float32).astype(wide.dtype))",
        ("tests/test_rules.py",),
    ),
    Fault(
        "no-cooldown",
        "kohort/rules.py",
        "counts = ~improves & (cooldown == 0)",
        "counts = ~improves",
        ("tests/test_rules.py",),
    ),
    Fault(
        "stopped-members-train-on",
        "kohort/rules.py",
        "either(carry[1].goes_on, train, rest, carry, e)",
        "either(carry[1].epochs >= 0, train, rest, carry, e)",
        (f"{CALLBACKS}test_a_poisoned_member_stops_alone[True]",),
    ),
    Fault(
        "stopped-members-draw-on",
        "kohort/rounds.py",
        "for number in np.flatnonzero(is_short[lot.members]).tolist():",
        "for number in []:",
        (f"{CALLBACKS}test_exact_members_are_guided_as_by_keras_bit_for_bit[patience]",),
    ),
    Fault(
        "lanes-are-mixed-up",
        "kohort/lanes.py",
        "left[own] = np.asarray(now)[: block.own]",
        "left[own] = np.asarray(now)[: block.own][::-1]",
        ("tests/test_lanes.py",),
    ),
    # the switch
    Fault(
        "uninstall-forgets-to-restore",
        "kohort/accelerate.py",
        "        del keras.Model.fit\n",
        "",
        ("tests/test_accelerate.py::test_installed_twice_is_installed_once",),
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
        ("tests/test_accelerate.py::test_blocks_restore_what_was_before",),
    ),
    Fault(
        "fall-backs-counted-as-compiled",
        "kohort/report.py",
        "sum(row.calls for row in self if row.way != KERAS)",
        "self.calls",
        ("tests/test_report.py",),
    ),
]
