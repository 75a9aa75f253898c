//! Values on the command line that clap cannot parse by itself.

use std::time::Duration;

use clap::ValueEnum;

use crate::settings::Strategy;

/// A number of seconds, which may have a fraction.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(value).map_err(|error| error.to_string())
}

/// The time between two prints.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let value = seconds(text)?;
    if value < Duration::from_millis(100) { Err("at least 0.1 seconds".to_owned()) } else { Ok(value) }
}

/// A number of threads.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "expected a number of threads, 1 or more".to_owned())
}

/// A number of bytes, with an optional unit K, M, G or T (powers of 1024).
pub(super) fn size(text: &str) -> Result<u64, String> {
    let no_size = || "expected a number of bytes, or a number with a unit K, M, G or T".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(no_size()),
    };
    let number: u64 = digits.parse().map_err(|_| no_size())?;
    number.checked_mul(1 << shift).ok_or_else(no_size)
}

/// A strategy of mounts. `hardlink`, which only restores can use, has an error message of its own.
pub(super) fn strategy(text: &str) -> Result<Strategy, String> {
    Strategy::from_str(text, true).map_err(|_| {
        if text.eq_ignore_ascii_case("hardlink") {
            "hardlink shares one inode between environments; use smart".to_owned()
        } else {
            "possible values: smart, reflink, copy".to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_a_unit() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("10g"), Ok(10 << 30));
        for bad in ["", "G", "1.5G", "-1", "99999999T", "10GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_runs_without_a_thread_or_a_pause() {
        assert_eq!((threads("1"), interval("0.1")), (Ok(1), Ok(Duration::from_millis(100))));
        assert!(threads("0").is_err() && threads("x").is_err() && threads("-1").is_err());
        assert!(interval("0").is_err() && interval("x").is_err());
    }

    #[test]
    fn seconds_may_have_a_fraction() {
        assert_eq!(seconds("0.2"), Ok(Duration::from_millis(200)));
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        for text in ["", "-1", "NaN", "inf", "1s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
