"""Faults in what a table becomes, and in how networks are judged by it."""

from fault import Fault

HELD_OUT, TABLES = "tests/test_held_out.py::", "tests/test_tables.py::"

FAULTS = [
    Fault(
        "scaled-by-rows-that-are-held-out",
        "kohort/held_out.py",
        "copies = [tables.learned(layout, table.taken(training))(table) for training, _ in splits]",
        "copies = [tables.learned(layout, table)(table) for training, _ in splits]",
        (f"{HELD_OUT}test_no_held_out_row_has_a_hand_in_what_is_told_of_the_others",),
    ),
    Fault(
        "target-scaled-by-rows-that-are-held-out",
        "kohort/held_out.py",
        "own = target.values[rows]",
        "own = target.values",
        (f"{HELD_OUT}test_no_held_out_row_has_a_hand_in_what_is_told_of_the_others",),
    ),
    Fault(
        "rows-of-another-fold",
        "kohort/held_out.py",
        "_meant(part[k :: len(splits)], units[k], target)",
        "_meant(part[0 :: len(splits)], units[k], target)",
        (f"{HELD_OUT}test_the_oracle_is_plain_keras[number]",),
    ),
    Fault(
        "categories-that-nobody-learned",
        "kohort/tables.py",
        "told=(numbers.max(axis=0) > numbers.min(axis=0)).tolist()",
        "told=[True] * numbers.shape[1]",
        (f"{TABLES}test_what_the_training_rows_do_not_tell_is_nothing",),
    ),
    Fault(
        "diverged-network-votes",
        "kohort/held_out.py",
        "return np.where(np.isfinite(self.members).all(axis=2), self.members.argmax(axis=2), -1)",
        "return self.members.argmax(axis=2)",
        (f"{HELD_OUT}test_who_diverged_has_no_vote",),
    ),
]
