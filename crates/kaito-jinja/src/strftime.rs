//! `datetime.strftime` as Python has it on Linux, in the C locale, of a time without a zone.

use chrono::{Datelike, NaiveDateTime, Timelike};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// How a number is filled up.
#[derive(Clone, Copy)]
enum Pad {
    None,
    With(char),
}

pub(crate) fn strftime(time: NaiveDateTime, format: &str) -> String {
    let mut out = String::with_capacity(format.len() * 2);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let directive = &rest[at..];
        let mut pad = None;
        let mut upper = false;
        let mut length = 1;
        for flag in directive[1..].chars() {
            match flag {
                '-' => pad = Some(Pad::None),
                '_' => pad = Some(Pad::With(' ')),
                '0' => pad = Some(Pad::With('0')),
                '^' => upper = true,
                '#' => {}
                _ => break,
            }
            length += 1;
        }
        let letter = directive[length..].chars().next();
        let written = letter.and_then(|letter| field(time, letter, pad));
        match (written, letter) {
            (Some(text), Some(letter)) => {
                out.push_str(&if upper { text.to_uppercase() } else { text });
                length += letter.len_utf8();
            }
            _ => {
                length += letter.map_or(0, char::len_utf8);
                out.push_str(&directive[..length]);
            }
        }
        rest = &directive[length..];
    }
    out.push_str(rest);
    out
}

fn field(time: NaiveDateTime, letter: char, pad: Option<Pad>) -> Option<String> {
    let number = |value: i64, width: usize, usual: char| {
        let digits = value.to_string();
        match pad.unwrap_or(Pad::With(usual)) {
            Pad::None => digits,
            Pad::With(fill) => format!("{}{digits}", fill.to_string().repeat(width.saturating_sub(digits.len()))),
        }
    };
    let zeros = |value: u32, width| number(i64::from(value), width, '0');
    let again = |format| Some(strftime(time, format));
    let monday = time.weekday().num_days_from_monday();
    let day = |index: u32| usize::try_from(index).ok().and_then(|index| DAYS.get(index)).copied().unwrap_or_default();
    let month = usize::try_from(time.month0()).ok().and_then(|index| MONTHS.get(index)).copied().unwrap_or_default();
    let hour12 = (time.hour() + 11) % 12 + 1;
    let year = i64::from(time.year());
    Some(match letter {
        'a' => day(monday)[..3].to_owned(),
        'A' => day(monday).to_owned(),
        'b' | 'h' => month[..3].to_owned(),
        'B' => month.to_owned(),
        'c' => return again("%a %b %e %H:%M:%S %Y"),
        'C' => number(year / 100, 2, '0'),
        'd' => zeros(time.day(), 2),
        'D' | 'x' => return again("%m/%d/%y"),
        'e' => number(time.day().into(), 2, ' '),
        'f' => format!("{:06}", time.nanosecond() / 1000 % 1_000_000),
        'F' => return again("%Y-%m-%d"),
        'g' => number(i64::from(time.iso_week().year()).rem_euclid(100), 2, '0'),
        'G' => number(time.iso_week().year().into(), 4, '0'),
        'H' => zeros(time.hour(), 2),
        'I' => zeros(hour12, 2),
        'j' => zeros(time.ordinal(), 3),
        'k' => number(time.hour().into(), 2, ' '),
        'l' => number(hour12.into(), 2, ' '),
        'm' => zeros(time.month(), 2),
        'M' => zeros(time.minute(), 2),
        'n' => "\n".to_owned(),
        'p' => (if time.hour() < 12 { "AM" } else { "PM" }).to_owned(),
        'P' => (if time.hour() < 12 { "am" } else { "pm" }).to_owned(),
        'r' => return again("%I:%M:%S %p"),
        'R' => return again("%H:%M"),
        'S' => zeros(time.second(), 2),
        't' => "\t".to_owned(),
        'T' | 'X' => return again("%H:%M:%S"),
        'u' => (monday + 1).to_string(),
        'U' => zeros((time.ordinal0() + 7 - time.weekday().num_days_from_sunday()) / 7, 2),
        'V' => zeros(time.iso_week().week(), 2),
        'w' => time.weekday().num_days_from_sunday().to_string(),
        'W' => zeros((time.ordinal0() + 7 - monday) / 7, 2),
        'y' => number(year.rem_euclid(100), 2, '0'),
        'Y' => number(year, 1, '0'),
        'z' | 'Z' => String::new(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}
