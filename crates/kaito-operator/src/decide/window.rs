//! Maintenance windows: when running models may be restarted.

use std::{fmt, str::FromStr};

use k8s_openapi::jiff::Timestamp;

/// Minutes of a day.
const DAY: u32 = 24 * 60;
/// Days of a week, as they are written.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// 1970-01-01 was a Thursday.
const FIRST_DAY: i64 = 3;

/// A time on some days of the week, in UTC, like `Sat,Sun 02:00-06:00`. `22:00-04:00` ends on the next day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The days on which it begins, Monday first.
    days: [bool; 7],
    /// Minutes after midnight.
    from: u32,
    /// Minutes after the midnight before it begins.
    until: u32,
    written: String,
}

impl Window {
    /// Whether it is open.
    pub fn is_open(&self, now: Timestamp) -> bool {
        let (day, minute) = day_and_minute(now);
        let begun = self.begins_on(day) && (self.from..self.until).contains(&minute);
        begun || self.begins_on(day - 1) && minute + DAY < self.until
    }

    /// When it opens next, if it is closed.
    pub fn opens(&self, now: Timestamp) -> Option<Timestamp> {
        let (today, minute) = day_and_minute(now);
        let first = if minute < self.from { today } else { today + 1 };
        let day = (first..first + 7).find(|day| self.begins_on(*day))?;
        Timestamp::from_second((day * i64::from(DAY) + i64::from(self.from)) * 60).ok()
    }

    fn begins_on(&self, day: i64) -> bool {
        let weekday = usize::try_from((day + FIRST_DAY).rem_euclid(7)).unwrap_or_default();
        self.days.get(weekday).copied().unwrap_or_default()
    }
}

/// Days since 1970, and the minute of the day.
fn day_and_minute(now: Timestamp) -> (i64, u32) {
    let minutes = now.as_second().div_euclid(60);
    let minute = minutes.rem_euclid(i64::from(DAY));
    (minutes.div_euclid(i64::from(DAY)), u32::try_from(minute).unwrap_or_default())
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// Text that is no maintenance window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a maintenance window: [DAYS ]HH:MM-HH:MM in UTC, like 02:00-06:00, Sat,Sun 22:00-04:00 or \
     Mon-Fri 01:00-05:00"
)]
pub struct NotAWindow(String);

impl FromStr for Window {
    type Err = NotAWindow;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not = || NotAWindow(text.chars().take(100).collect());
        let words: Vec<&str> = text.split_whitespace().take(3).collect();
        let (days, times) = match words.as_slice() {
            [times] => ([true; 7], *times),
            [days, times] => (read_days(days).ok_or_else(not)?, *times),
            _ => return Err(not()),
        };
        let (from, until) = times.split_once('-').ok_or_else(not)?;
        let (from, until) = read_time(from).zip(read_time(until)).ok_or_else(not)?;
        if from == DAY || from == until {
            return Err(not());
        }
        let until = if until < from { until + DAY } else { until };
        Ok(Self { days, from, until, written: words.join(" ") })
    }
}

/// `Mon`, `Sat,Sun`, `Mon-Fri`.
fn read_days(text: &str) -> Option<[bool; 7]> {
    let day = |name: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        // `Sat-Mon` goes past the end of the week.
        let length = (last + 7 - first) % 7;
        for offset in 0..=length {
            if let Some(day) = days.get_mut((first + offset) % 7) {
                *day = true;
            }
        }
    }
    Some(days)
}

/// Minutes after midnight; 24:00 is the end of the day.
fn read_time(text: &str) -> Option<u32> {
    let number = |text: &str| {
        (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<u32>().ok())?
    };
    let (hours, minutes) = text.split_once(':')?;
    let time = number(hours)? * 60 + number(minutes).filter(|minutes| *minutes < 60)?;
    (time <= DAY).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// 2026-11-28 is a Saturday.
    #[test]
    fn windows_open_and_close_in_utc() {
        for (window, time, is_open, opens) in [
            ("02:00-06:00", "2026-11-28T01:59:59Z", false, "2026-11-28T02:00:00Z"),
            ("02:00-06:00", "2026-11-28T02:00:00Z", true, "2026-11-29T02:00:00Z"),
            ("02:00-06:00", "2026-11-28T05:59:59Z", true, "2026-11-29T02:00:00Z"),
            ("02:00-06:00", "2026-11-28T06:00:00Z", false, "2026-11-29T02:00:00Z"),
            ("02:00-06:00", "2026-11-28T04:30:00+02:00", true, "2026-11-29T02:00:00Z"),
            ("Sun 02:00-06:00", "2026-11-28T03:00:00Z", false, "2026-11-29T02:00:00Z"),
            ("sat,SUN 02:00-06:00", "2026-11-28T03:00:00Z", true, "2026-11-29T02:00:00Z"),
            ("Sat 02:00-06:00", "2026-11-28T07:00:00Z", false, "2026-12-05T02:00:00Z"),
            ("Mon-Fri 01:00-05:00", "2026-11-28T03:00:00Z", false, "2026-11-30T01:00:00Z"),
            ("Fri 22:00-04:00", "2026-11-28T03:59:00Z", true, "2026-12-04T22:00:00Z"),
            ("Fri 22:00-04:00", "2026-11-28T04:00:00Z", false, "2026-12-04T22:00:00Z"),
            ("Sat 22:00-04:00", "2026-11-28T03:00:00Z", false, "2026-11-28T22:00:00Z"),
            ("Sat-Mon 00:00-24:00", "2026-11-30T23:59:59Z", true, "2026-12-05T00:00:00Z"),
            ("Sat-Mon 00:00-24:00", "2026-12-01T00:00:00Z", false, "2026-12-05T00:00:00Z"),
            ("Mon-Sun 23:59-00:01", "2026-12-01T00:00:30Z", true, "2026-12-01T23:59:00Z"),
            ("00:00-00:01", "1969-12-31T23:59:59Z", false, "1970-01-01T00:00:00Z"),
        ] {
            let read: Window = window.parse().unwrap();
            assert_eq!(read.is_open(at(time)), is_open, "{window} at {time}");
            assert_eq!(read.opens(at(time)), Some(at(opens)), "{window} after {time}");
            assert_eq!(read.to_string(), window);
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "02:00",
            "2:00-6:00",
            "02:00-25:00",
            "02:60-03:00",
            "24:00-01:00",
            "02:00-02:00",
            "Sat",
            "Sat,02:00-06:00",
            "Saturday 02:00-06:00",
            "Sat, Sun 02:00-06:00",
            "Sat 02:00-06:00 UTC",
            "0 2 * * 6",
            "+2:00-06:00",
        ] {
            let error = text.parse::<Window>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not a maintenance window")), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gets_an_answer(text in ".{0,60}") {
            let _ = text.parse::<Window>();
        }

        #[test]
        fn it_is_open_when_it_opens_and_not_before(
            second in 0..4_000_000_000_i64, from in 0..DAY, until in 0..=DAY, days in 1..128_u32,
        ) {
            proptest::prop_assume!(from != until);
            let until = if until < from { until + DAY } else { until };
            let days = std::array::from_fn(|day| days >> day & 1 == 1);
            let window = Window { days, from, until, written: String::new() };
            let now = Timestamp::from_second(second).unwrap();
            let opens = window.opens(now).unwrap();
            proptest::prop_assert!(opens > now && window.is_open(opens));
            if !window.is_open(now) {
                let between = Timestamp::from_second(now.as_second() + (opens.as_second() - now.as_second()) / 2).unwrap();
                proptest::prop_assert!(!window.is_open(between) || between == opens);
            }
        }
    }
}
