//! What a scalar means: text, null, a boolean, a number or a timestamp, by the rules of Go's `yaml.v2`.

/// The tag of merge keys.
pub(super) const MERGE_TAG: &str = "tag:yaml.org,2002:merge";

/// What the text of a scalar means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// Text.
    Text,
    /// Text that looks like a date. In most places it stays text.
    Timestamp,
    /// The merge key `<<`, which stays text outside of a mapping's keys.
    Merge,
    /// No value.
    Null,
    /// A boolean.
    Bool,
    /// An integer.
    Int,
    /// A number with a fraction or an exponent, or one that is too large for an integer.
    Float,
    /// The decoded text of a scalar with the tag `!!binary`.
    Binary(String),
}

/// The meaning of a scalar with a tag.
pub(super) fn tagged(tag: Option<&str>, text: &str, is_plain: bool) -> Result<Meaning, String> {
    let Some(tag) = tag else {
        return Ok(if is_plain { meaning(text) } else { Meaning::Text });
    };
    let Some(name) = tag.strip_prefix("tag:yaml.org,2002:") else { return Ok(Meaning::Text) };
    let found = meaning(text);
    let fits = match name {
        "binary" => return binary(text).map(Meaning::Binary),
        "bool" => found == Meaning::Bool,
        "int" => found == Meaning::Int,
        "float" if found == Meaning::Int => return Ok(Meaning::Float),
        "float" => found == Meaning::Float,
        "null" => found == Meaning::Null,
        "timestamp" => found == Meaning::Timestamp,
        _ => return Ok(Meaning::Text),
    };
    if fits { Ok(found) } else { Err(format!("it is not a !!{name}")) }
}

/// The meaning of a plain scalar without a tag.
#[must_use]
pub fn meaning(text: &str) -> Meaning {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" | "n" | "N"
        | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Meaning::Bool,
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => return Meaning::Float,
        "<<" => return Meaning::Merge,
        _ => {}
    }
    match text.as_bytes().first() {
        Some(b'.') if is_float(text) => Meaning::Float,
        Some(b'0'..=b'9' | b'+' | b'-') => {
            if is_timestamp(text) {
                return Meaning::Timestamp;
            }
            let digits = text.replace('_', "");
            if is_int(&digits) {
                Meaning::Int
            } else if is_float(&digits) {
                Meaning::Float
            } else {
                Meaning::Text
            }
        }
        _ => Meaning::Text,
    }
}

/// Whether Go's `strconv.ParseInt` or `ParseUint` accepts the digits, with a prefix for the base. A number with the prefix
/// `0b` may have a sign behind it.
fn is_int(digits: &str) -> bool {
    if let Some(bits) = digits.strip_prefix("0b")
        && (i64::from_str_radix(bits, 2).is_ok() || u64::from_str_radix(bits, 2).is_ok())
    {
        return true;
    }
    let (sign, number) = match digits.as_bytes().first() {
        Some(b'-') => ("-", digits.get(1..).unwrap_or_default()),
        Some(b'+') => ("+", digits.get(1..).unwrap_or_default()),
        _ => ("", digits),
    };
    let lower = number.to_ascii_lowercase();
    let (radix, number) = match (lower.get(..2), lower.as_bytes().first()) {
        (Some("0x"), _) => (16, lower.get(2..)),
        (Some("0o"), _) => (8, lower.get(2..)),
        (Some("0b"), _) => (2, lower.get(2..)),
        (Some(_), Some(b'0')) => (8, lower.get(1..)),
        _ => (10, Some(lower.as_str())),
    };
    let Some(number) = number.filter(|number| number.chars().all(|c| c.is_digit(radix))) else {
        return false;
    };
    let fits_signed = i64::from_str_radix(&format!("{}{number}", if sign == "-" { "-" } else { "" }), radix);
    fits_signed.is_ok() || sign.is_empty() && u64::from_str_radix(number, radix).is_ok()
}

/// Whether the text is a decimal number, with or without a fraction and an exponent, that is not too large.
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (unsigned.get(..at).unwrap_or_default(), unsigned.get(at + 1..)),
        None => (unsigned, None),
    };
    let is_digits = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && is_digits(fraction),
        Some((whole, fraction)) => is_digits(whole) && is_digits(fraction),
        None => !mantissa.is_empty() && is_digits(mantissa),
    };
    let is_exponent = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !digits.is_empty() && is_digits(digits)
    });
    is_mantissa && is_exponent && unsigned.parse::<f64>().is_ok_and(f64::is_finite)
}

/// Whether the text is a date, or a date and a time, in one of the forms that `yaml.v2` accepts.
fn is_timestamp(text: &str) -> bool {
    let mut rest = Rest(text);
    let Some(year) = rest.number(4, 4).filter(|_| rest.eat("-")) else { return false };
    let Some(month) = rest.number(1, 2).filter(|_| rest.eat("-")) else { return false };
    let Some(day) = rest.number(1, 2) else { return false };
    if !(1..=12).contains(&month) || !(1..=days(year, month)).contains(&day) {
        return false;
    }
    if rest.0.is_empty() {
        return true;
    }
    let has_zone = rest.eat("T") || rest.eat("t");
    if !has_zone && !rest.eat(" ") {
        return false;
    }
    let Some(hour) = rest.number(1, 2).filter(|_| rest.eat(":")) else { return false };
    let Some(minute) = rest.number(1, 2).filter(|_| rest.eat(":")) else { return false };
    let Some(second) = rest.number(1, 2) else { return false };
    if hour > 23 || minute > 59 || second > 59 {
        return false;
    }
    let fraction = rest.0.strip_prefix(['.', ',']).filter(|fraction| fraction.starts_with(is_digit));
    if let Some(fraction) = fraction {
        rest.0 = fraction.trim_start_matches(is_digit);
    }
    if has_zone && !rest.eat("Z") {
        if !rest.eat("+") && !rest.eat("-") {
            return false;
        }
        let Some(hours) = rest.number(2, 2).filter(|_| rest.eat(":")) else { return false };
        let Some(minutes) = rest.number(2, 2) else { return false };
        if hours > 24 || minutes > 60 {
            return false;
        }
    }
    rest.0.is_empty()
}

/// The part of a timestamp that is not read yet.
struct Rest<'t>(&'t str);

impl Rest<'_> {
    fn eat(&mut self, prefix: &str) -> bool {
        match self.0.strip_prefix(prefix) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// A number with that many digits.
    fn number(&mut self, least: usize, most: usize) -> Option<u32> {
        let digits = self.0.bytes().take(most).take_while(u8::is_ascii_digit).count();
        let (number, rest) = self.0.split_at_checked(digits).filter(|_| digits >= least)?;
        self.0 = rest;
        number.parse().ok()
    }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn days(year: u32, month: u32) -> u32 {
    let is_leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        _ => 31,
    }
}

/// The text in a base64 encoding, with line ends anywhere.
fn binary(text: &str) -> Result<String, String> {
    let bad = || "!!binary value contains invalid base64 data".to_owned();
    let text: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    if !text.len().is_multiple_of(4) {
        return Err(bad());
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let quads = text.len() / 4;
    for (n, quad) in text.chunks(4).enumerate() {
        let padding = quad.iter().rev().take_while(|byte| **byte == b'=').count();
        if padding > 2 || padding > 0 && n + 1 != quads {
            return Err(bad());
        }
        let mut word = 0_u32;
        for byte in quad.iter().take(4 - padding) {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return Err(bad()),
            };
            word = word << 6 | u32::from(value);
        }
        word <<= 6 * padding;
        let [_, a, b, c] = word.to_be_bytes();
        bytes.extend([a, b, c].iter().take(3 - padding));
    }
    String::from_utf8(bytes).map_err(|_| "the decoded !!binary value is not UTF-8 text".to_owned())
}
