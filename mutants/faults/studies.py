"""The faults of studies: their store, what is trained again, who goes on, and workers that die."""

from fault import Fault

STUDY = "tests/test_study.py::"

FAULTS = [
    # what Keras does not tell, and what a stranger may claim
    Fault(
        "arguments-of-losses-forgotten",
        "kohort/blueprint.py",
        'if "loss_arguments" in description:',
        "if not description:",
        ("tests/test_saved_members.py::test_what_keras_leaves_out_of_a_configuration_is_kept",),
    ),
    Fault(
        "trials-of-other-losses-trained-alike",
        "kohort/blueprint.py",
        '"loss_arguments": keras_parts.loss_arguments(model),',
        '"loss_arguments": [{} for _ in keras_parts.loss_arguments(model)],',
        ("tests/test_variants.py",),
    ),
    Fault(
        "claimed-epochs-believed",
        "kohort/blocks.py",
        "        _check_follows(block, arrays, seen)\n",
        "",
        ("tests/test_study_reading.py::test_a_block_of_other_epochs_or_seeds_is_no_result",),
    ),
    Fault(
        "journal-not-looked-at",
        "kohort/store.py",
        "if journal.read() == NAMES_ANOTHER_FILE:",
        "if journal.closed:",
        ("tests/test_store.py::test_a_journal_that_names_another_file_is_refused",),
    ),
    Fault(
        "journal-of-a-huge-index-followed",
        "kohort/store.py",
        "pages * (size or MOST_PAGE_BYTES) > MOST_INDEX_BYTES",
        "pages > MOST_INDEX_BYTES",
        ("tests/test_strangers.py::test_a_journal_that_would_make_the_index_huge_is_refused",),
    ),
    Fault(
        "what-a-stranger-says-is-believed",
        "kohort/store.py",
        "wrong = [name for name, kind in SAID.items() if not isinstance(about.get(name, kind()), kind)]",
        "wrong = [name for name in SAID if not name]",
        ("tests/test_strangers.py::test_what_a_stranger_says_of_a_block_is_of_its_form",),
    ),
    Fault(
        "links-followed",
        "kohort/store.py",
        "if (self.folder / name).is_symlink():",
        "if not name:",
        ("tests/test_store.py::test_a_link_to_another_place_is_refused",),
    ),
    Fault(
        "block-committed-twice",
        "kohort/store.py",
        "if len(set(members)) < len(members) or any(seed in self._there[trial, at] for trial, at, seed in members):",
        "if all(seed in self._there[trial, at] for trial, at, seed in members):",
        ("tests/test_store.py::test_nothing_is_there_twice",),
    ),
    Fault(
        "sum-of-the-index-not-looked-at",
        "kohort/store.py",
        'if total != added("0" * 64, rows):',
        "if not total:",
        ("tests/test_store.py::test_any_flipped_bit_of_the_index_is_noticed_or_changes_nothing",),
    ),
    Fault(
        "finished-study-trained-again",
        "kohort/runs.py",
        "if known.get(seed, 0) < epochs:",
        "if known.get(seed, 0) <= epochs:",
        (f"{STUDY}test_a_finished_study_trains_nothing",),
    ),
    Fault(
        "told-by-another-trial",
        "kohort/trainer.py",
        "if own == place]",
        "if own != place] or [0]",
        (f"{STUDY}test_trials_that_differ_in_numbers_share_a_program_and_differ_as_they_should[False]",),
    ),
    Fault(
        "halving-keeps-the-worst",
        "kohort/plans.py",
        "finite = sorted(each for each in ranked if math.isfinite(each[0]))",
        "finite = sorted((each for each in ranked if math.isfinite(each[0])), reverse=True)",
        (f"{STUDY}test_survivors_are_ranked_together",),
    ),
    Fault(
        "members-of-a-study-end-at-different-epochs",
        "kohort/plans.py",
        "    if epochs >= reached:",
        "    if True:",
        ("tests/test_wrong_studies.py::test_members_do_not_end_before_an_epoch_that_others_have_reached",),
    ),
    Fault(
        "block-of-a-killed-worker-lost",
        "kohort/distribute.py",
        "            self.plan.again(lane, task)\n",
        "            pass\n",
        ("tests/test_distribute.py::test_a_killed_worker_costs_its_block_alone",),
    ),
    Fault(
        "search-left-running",
        "kohort/search.py",
        "            search.tell(own.number, state=_states(package).FAIL, skip_if_finished=True)\n",
        "            pass\n",
        ("tests/test_search.py::test_an_interrupted_search_goes_on",),
    ),
    Fault(
        "next-task-begun-before-the-last-is-written",
        "kohort/executors.py",
        "                    begin(workers - 1)",
        "                    begin(workers)",
        ("tests/test_executors.py::test_no_more_is_begun_beyond_what_is_written_than_there_are_workers",),
    ),
    Fault(
        "blocks-describe-the-first-trial-trained",
        "kohort/variants.py",
        "of_first | {difference.path",
        "{difference.path",
        ("tests/test_variants.py::test_each_block_describes_its_own_trial_whichever_was_trained_first",),
    ),
    Fault(
        "room-made-for-whatever-is-claimed",
        "kohort/blocks.py",
        "        check_room((len(seeds), seen), sum(cells.values()), held)\n",
        "",
        ("tests/test_store.py::test_a_few_members_of_many_epochs_beside_many_members_take_no_memory",),
    ),
    Fault(
        "exports-written-in-place",
        "kohort/exports.py",
        "        table.to_csv(aside,",
        "        table.to_csv(target,",
        ("tests/test_search.py::test_whoever_is_interrupted_while_a_file_is_written_keeps_the_old_one",),
    ),
]
