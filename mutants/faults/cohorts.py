"""The faults of cohorts: their members, callbacks, folds, and what is asked of them afterwards."""

from fault import Fault

COHORT = "tests/test_cohort.py::"
VARY = "tests/test_vary.py::"
FOLDS = "tests/test_folds.py::"
CALLBACKS = "tests/test_cohort_callbacks.py::"

FAULTS = [
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
        ("tests/test_mapping.py::test_many_members_train_as_each_by_itself[middle0-True-abreast]",),
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
        "kohort/lots.py",
        "self._shuffle(numbers, count, before, after, rows, lanes)",
        "self._shuffle(numbers, count, before, after, rows, lanes[::-1])",
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
        "kohort/curves.py",
        "kept[:, rows] = own\n",
        "kept[:, rows] = own - own.mean(1, keepdims=True) + own[:, :1]\n",
        (f"{COHORT}test_diverged_member_leaves_its_neighbours",),
    ),
    Fault(
        "second-fit-begins-anew",
        "kohort/rounds.py",
        "if members.trained else self._begin()",
        "if not members else self._begin()",
        (f"{COHORT}test_arguments_of_fit_and_a_second_fit",),
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
        "kohort/lots.py",
        "own, its_rows = shares[member], rows[lane, :count]",
        "own, its_rows = shares[member - 1], rows[lane, :count]",
        (f"{FOLDS}test_exact_member_is_bit_for_bit_keras_on_its_rows[shuffled]",),
    ),
    Fault(
        "validates-on-the-first-rows",
        "kohort/lots.py",
        "return schedule._replace(validation_rows=self._validation_rows(block))",
        "return schedule._replace(validation_rows=None)",
        (f"{FOLDS}test_exact_member_is_bit_for_bit_keras_on_its_rows[shuffled]",),
    ),
    Fault(
        "weights-of-another-member",
        "kohort/lots.py",
        "weights = self.ahead.shares.weights[self.members[block.members]]",
        "weights = self.ahead.shares.weights[self.members[block.members[::-1]]]",
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
        "kohort/lots.py",
        "short = np.flatnonzero(ran < count)\n",
        "short = np.flatnonzero(ran < 0)\n",
        (f"{CALLBACKS}test_exact_members_are_guided_as_by_keras_bit_for_bit[baseline]",),
    ),
    Fault(
        "second-half-of-a-round-draws-what-the-first-drew",
        "kohort/rounds.py",
        "from_here = trained.generators if part.start == epochs.start else drawn",
        "from_here = trained.generators",
        ("tests/test_lots.py::test_a_block_that_is_halved_trains_as_one_that_is_not[list]",),
    ),
    Fault(
        "lanes-are-mixed-up",
        "kohort/lanes.py",
        "left[own] = np.asarray(now)[: block.own]",
        "left[own] = np.asarray(now)[: block.own][::-1]",
        ("tests/test_lanes.py",),
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
    Fault(
        "film-one-epoch-late",
        "kohort/cohort_callbacks.py",
        "self._done = epoch + 1",
        "self._done = epoch",
        ("tests/test_plot_film.py::test_a_cohorts_film_is_what_keras_answers_at_these_epochs",),
    ),
    Fault(
        "rate-at-the-place-of-another",
        "kohort/plot/rates.py",
        "return tuple(sorted(values)) if _are_numbers(values) else values",
        "return values",
        ("tests/test_plot_rates.py::test_the_rates_are_those_of_plain_keras",),
    ),
    Fault(
        "logs-of-the-first-lanes",
        "kohort/curves.py",
        "members if (np.diff(members) != 1).any() else slice",
        "slice",
        ("tests/test_curves.py::test_members_find_their_rows_and_nan_where_nothing_was_recorded",),
    ),
    Fault(
        "memory-is-not-looked-at",
        "kohort/choice.py",
        "if working <= room:",
        "if working <= room or True:",
        ("tests/test_choice.py::test_little_memory_makes_narrow_blocks_with_the_same_results",),
    ),
    Fault(
        "rules-see-the-first-member",
        "kohort/rules.py",
        'stops = is_due & ~improves & (wait >= numbers["patience"]) & (seen.epoch > 0)',
        'stops = jnp.any(is_due & ~improves & (wait >= numbers["patience"]) & (seen.epoch > 0))',
        ("tests/test_mapping.py::test_guided_members_stop_alike_in_all_mappings[loop]",),
    ),
]
