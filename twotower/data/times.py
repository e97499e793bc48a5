"""Times in seconds since 1970, and numbers that are dates and look like seconds."""

import numpy as np
import pandas as pd

# In the year 5138. A larger timestamp must be in milliseconds or a finer unit.
LATEST = 100_000_000_000


def seconds_of(values: pd.Series) -> np.ndarray:
    """Dates `[num_rows]` as seconds since 1970, float64, NaN if missing. Without a zone they are in
    UTC."""
    dates = pd.to_datetime(values, utc=True).dt.tz_localize(None)
    seconds = dates.to_numpy("datetime64[us]").astype(np.int64) // 1_000_000  # cuts fractions off
    return np.where(dates.isna(), np.nan, seconds)


def reads_as_date(numbers: np.ndarray) -> np.ndarray:
    """Which numbers could be days such as 20110820, or years from 1800 to 2100, `[num_rows]` bool.

    Seconds at midnight never look like days: multiples of 86,400 end in 00, and no day does.

    >>> reads_as_date(np.array([20110820.0, 1999.0, 978300760.0])).tolist()
    [True, True, False]
    """
    return (numbers >= 1800) & (numbers <= 2100) | _is_day(numbers)


def _is_day(numbers: np.ndarray, first_year: int = 1800, last_year: int = 2100) -> np.ndarray:
    """Which numbers are days such as 20110820 of these years, `[num_rows]` bool."""
    numbers = np.where(np.isnan(numbers), 0, numbers)
    year, month, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
    is_day = (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return is_day & (year >= first_year) & (year <= last_year)


def written_as_dates(numbers: np.ndarray) -> np.ndarray:
    """Which numbers of a column of times are dates and not seconds, `[num_rows]` bool.

    As seconds, days such as 20110820 would be in 1970, where no real table has some of its times.
    Years count where at least half of the numbers are years or days. Short forms count where the
    column has nothing else: 201108 (a month), 110820 (a day) and 2011082010 (an hour).
    """
    present = ~np.isnan(numbers)
    dates, days = reads_as_date(numbers), _is_day(numbers)
    if dates.any() and dates.sum() * 2 >= present.sum():
        return dates
    # Of counters and of seconds in 1970, one in 27 reads as a day.
    if days.sum() * 2 > ((numbers > 18_000_000) & (numbers < 21_010_000)).sum():
        return days
    months = _is_day(numbers * 100 + 1)
    hours = _is_day(numbers // 100, first_year=1970) & (numbers % 100 < 24)
    dates = dates | months | hours
    if (numbers[present] > 9999).any():  # else numbers of rows: 101 would be a day of 2000
        dates |= _is_day(numbers, 0, 99)
    # A column of one distinct number may hold anything.
    return dates & (dates[present].all() and len(np.unique(numbers[present])) > 1)
