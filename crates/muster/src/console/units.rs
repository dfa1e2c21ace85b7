//! Numbers as people read them.

/// `1234567` → `1.23 M`.
pub fn count(n: u64) -> String {
    scaled(n as f64, 1000.0, &["", " k", " M", " G", " T", " P"])
}

/// `1234567` → `1.18 MiB`.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB"])
}

/// At least three digits, as far as they are there.
fn scaled(mut x: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // 999.5 would be shown as 1000.
    while x >= base - 0.5 && unit + 1 < units.len() {
        x /= base;
        unit += 1;
    }
    let digits = match unit {
        0 => 0,
        _ if x < 9.995 => 2,
        _ if x < 99.95 => 1,
        _ => 0,
    };
    format!("{x:.digits$}{}", units[unit])
}

/// `4 m 05 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} m {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} m", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Milliseconds with the digits that matter.
pub fn ms(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.2} ms"),
        ..10_000.0 => format!("{ms:.0} ms"),
        _ => duration(ms / 1000.0),
    }
}

/// The start of a digest.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let counts: Vec<String> =
            [0, 999, 1000, 12_345, 999_499, 999_999, 1_234_567].map(count).into();
        assert_eq!(counts, ["0", "999", "1.00 k", "12.3 k", "999 k", "1.00 M", "1.23 M"]);
        let sizes: Vec<String> = [0, 1023, 1024, 1 << 20, 1_234_567_890].map(bytes).into();
        assert_eq!(sizes, ["0 B", "1023 B", "1.00 KiB", "1.00 MiB", "1.15 GiB"]);
        let times: Vec<String> = [0.25, 59.4, 61.0, 3661.0, 200_000.0].map(duration).into();
        assert_eq!(times, ["0.2 s", "59.4 s", "1 m 01 s", "1 h 01 m", "2 d 07 h"]);
    }
}
