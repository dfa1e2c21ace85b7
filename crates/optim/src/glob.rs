//! Patterns on parameter names: `*` is any run of characters (dots too), `?` is one.

/// Whether all of `name` matches `pattern`.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last star, and where in the name it stopped: it takes one more when the rest fails.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, n) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// `name` with every run of digits replaced by `*`: what the layers of a model have in common.
pub fn generalize(name: &str) -> String {
    let mut general = String::with_capacity(name.len());
    let mut digits = false;
    for c in name.chars() {
        let digit = c.is_ascii_digit();
        match (digit, digits) {
            (true, false) => general.push('*'),
            (true, true) => {}
            (false, _) => general.push(c),
        }
        digits = digit;
    }
    general
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, _) => name.is_empty(),
            (Some((&'*', rest)), _) => (0..=name.len()).any(|taken| slow(rest, &name[taken..])),
            (Some((p, rest)), Some((n, tail))) => (*p == '?' || p == n) && slow(rest, tail),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab.*?]{0,8}", name in "[ab.]{0,10}") {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &name), slow(&chars(&pattern), &chars(&name)));
        }
    }

    #[test]
    fn layers_have_one_general_name() {
        let name = "model.layers.12.experts.3.w1.weight";
        assert_eq!(generalize(name), "model.layers.*.experts.*.w*.weight");
        assert!(matches(&generalize(name), name));
    }
}
