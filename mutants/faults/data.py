"""The faults of what goes in: arrays, weights, the order of the batches, and streams."""

from fault import Fault

FIT = "tests/test_fit.py::"
COHORT = "tests/test_cohort.py::"
STREAM = "tests/test_stream.py::"
ENGINE = "tests/test_engine.py::"
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
        "what-an-earlier-fit-has-seen-is-held-out",
        "kohort/folds.py",
        "and _are_equal(self._rows, earlier._rows)",
        "",
        ("tests/test_folds.py::test_what_an_earlier_fit_has_trained_on_is_not_held_out",),
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
        "        return drawn[0]\n",
        "        return drawn[0][[0] * count]\n",
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
        "return begun._replace(generators=begun.generators.owing(self.ahead.data.cut.rows, 1))",
        "return begun",
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
]
