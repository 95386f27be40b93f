"""How rules of the data gates are made: expectations of Great Expectations with the name, the words and the severity of a rule."""

from collections.abc import Sequence
from typing import Any, get_args

import great_expectations as gx
from great_expectations.expectations.expectation import Expectation

from flows._pictures import OK

_EXPECT: Any = gx.expectations


def name_rule(rule: str, description: str, *, severity: str = "critical") -> dict[str, Any]:
    """What every rule carries: its name, what holds where it is kept, and whether data that breaks it is stopped."""
    return {"meta": {"rule": rule}, "description": description, "severity": severity}


def require_fact(rule: str, column: str, description: str, *, severity: str = "critical") -> Expectation:
    """A measured fact is ``ok``."""
    expectation: Expectation = _EXPECT.ExpectColumnValuesToBeInSet(
        column=column, value_set=[OK], **name_rule(rule, description, severity=severity)
    )
    return expectation


def require_known(rule: str, column: str, values: Any, description: str) -> Expectation:
    """A field holds one of the values of a ``Literal`` type."""
    expectation: Expectation = _EXPECT.ExpectColumnValuesToBeInSet(
        column=column, value_set=list(get_args(values)), **name_rule(rule, description)
    )
    return expectation


def require_unique(rule: str, columns: Sequence[str], description: str) -> Expectation:
    """A field, or several together, differ from record to record."""
    named = name_rule(rule, description)
    expectation: Expectation = (
        _EXPECT.ExpectColumnValuesToBeUnique(column=columns[0], **named)
        if len(columns) == 1
        else _EXPECT.ExpectCompoundColumnsToBeUnique(column_list=list(columns), ignore_row_if="any_value_is_missing", **named)
    )
    return expectation


def limit_rate(rule: str, column: str, *, refused: Sequence[str], known: Any, limit: float, description: str) -> Expectation:
    """At most the share ``limit``, 0-1, of a column's values (empty ones are not counted) is one of the ``refused``."""
    allowed = [value for value in get_args(known) if value not in refused]
    mostly = max(0.0, 1.0 - limit - 1e-9)  # the last term: a rate that equals the limit is let through whatever its binary form
    expectation: Expectation = _EXPECT.ExpectColumnValuesToBeInSet(
        column=column, value_set=allowed, mostly=mostly, **name_rule(rule, description)
    )
    return expectation
