"""The faults of what comes out: histories, rates and files."""

from fault import Fault

ENSEMBLE = "tests/test_ensemble.py::"
FILES = "tests/test_files.py::"
SAVING = "tests/test_saving.py::"

FAULTS = [
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
        "kohort/comparison.py",
        "pairs = [(row, place[seed]) for",
        "pairs = [(row, row) for",
        ("tests/test_results.py::test_cohorts_are_compared_on_the_seeds_that_they_share",),
    ),
    # files
    Fault(
        "programs-written-where-they-are-read",
        "kohort/disk.py",
        'write_aside(Path(own) / f"{key}-cache", value)',
        "super().put(key, value)",
        ("tests/test_disk.py::test_a_program_that_is_cut_short_is_compiled_anew_and_kept_whole",),
    ),
    Fault(
        "closed-folder-not-explained",
        "kohort/files.py",
        "    except OSError as error:\n        why = error.strerror or error",
        "    except TimeoutError as error:\n        why = error.strerror or error",
        ("tests/test_plot_wrong.py::test_a_folder_that_may_not_be_written[.webp-closed]",),
    ),
    Fault(
        "closed-study-not-explained",
        "kohort/store.py",
        "with self._explained():  # it may be",
        "with contextlib.nullcontext():  # it may be",
        ("tests/test_unwritable.py::test_a_study_in_a_folder_that_is_closed",),
    ),
    Fault(
        "files-written-in-their-place",
        "kohort/files.py",
        'aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")',
        "aside = target",
        (f"{FILES}test_kills_during_saves_leave_a_whole_file", f"{FILES}test_what_is_written_is_read"),
    ),
    Fault(
        "positions-of-generators-not-checked",
        "kohort/generators.py",
        "(states is not None and (states[:, 624] > 624).any())",
        "False",
        ("tests/test_saved_members.py::test_values_and_rows_that_cannot_be_are_refused[a_position_beyond]",),
    ),
    Fault(
        "values-of-a-file-forgotten",
        "kohort/saving.py",
        "varied = check_vary(model, varied or None, len(seeds), grid=False)",
        "varied = {}",
        ("tests/test_saved_members.py::test_members_come_back_as_they_were_and_go_on[rates one by one]",),
    ),
    Fault(
        "rows-of-a-file-not-checked",
        "kohort/folds.py",
        "if not are_rows or part.min() < 0 or part.max() >= rows:",
        "if not are_rows:",
        ("tests/test_saved_members.py::test_values_and_rows_that_cannot_be_are_refused",),
    ),
    Fault(
        "folds-of-a-file-forgotten",
        "kohort/cohort.py",
        "cohort._held_out = kept.held_out",
        "cohort._held_out = HeldOut()",
        ("tests/test_saved_members.py::test_members_come_back_as_they_were_and_go_on[bootstrap]",),
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
        "        _check_sizes(place, contents)\n",
        "",
        (f"{SAVING}test_arrays_that_are_not_those_of_the_model[huge]",),
    ),
    Fault(
        "shapes-not-looked-at",
        "kohort/saving.py",
        "        _check_shapes(place, contents, members)\n",
        "",
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
]
