//! Slurm's short forms: `node[1-3,7],login` for hosts and `4(x2),3` for tasks of each node.
//!
//! ```text
//! list   = item { "," item }
//! item   = { text | "[" ranges "]" }            every bracket multiplies: a[1-2]b[3-4] is four
//! ranges = range { "," range }
//! range  = digits [ "-" digits ]                zeros in front are kept: [08-10] is 08 09 10
//! counts = count { "," count }
//! count  = digits [ "(x" digits ")" ]
//! ```
//!
//! Source: `scontrol show hostnames` and the description of `SLURM_TASKS_PER_NODE` in `sbatch(1)`.

/// More hosts than any machine has; a list that stands for more is a mistake.
pub const HOSTS_MAX: usize = 1 << 17;

/// Why a list cannot be read, and at which byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at character {}", at + 1)]
pub struct Malformed {
    pub what: &'static str,
    pub at: usize,
}

fn malformed<T>(what: &'static str, at: usize) -> Result<T, Malformed> {
    Err(Malformed { what, at })
}

/// The hosts that a list stands for, in its order.
///
/// # Errors
/// The fault of the list, and where it is.
pub fn hosts(list: &str) -> Result<Vec<String>, Malformed> {
    let mut all = Vec::new();
    let mut rest = Rest { list, at: 0 };
    loop {
        let from = rest.at;
        let item = rest.item()?;
        if item.iter().any(String::is_empty) {
            return malformed("a host without a name", from);
        }
        all.extend(item);
        if all.len() > HOSTS_MAX {
            return malformed("more hosts than there can be", from);
        }
        match rest.next() {
            None => return Ok(all),
            Some(_) => rest.at += 1,
        }
    }
}

/// The rest of the list, which has not been read yet.
struct Rest<'a> {
    list: &'a str,
    at: usize,
}

impl<'a> Rest<'a> {
    fn next(&self) -> Option<u8> {
        self.list.as_bytes().get(self.at).copied()
    }

    /// The names of one item: up to a comma that is in no bracket.
    fn item(&mut self) -> Result<Vec<String>, Malformed> {
        let mut names = vec![String::new()];
        while let Some(byte) = self.next() {
            match byte {
                b',' => break,
                b'[' => {
                    let numbers = self.ranges()?;
                    if names.len().saturating_mul(numbers.len()) > HOSTS_MAX {
                        return malformed("more hosts than there can be", self.at);
                    }
                    let with = |name: &String| {
                        numbers.iter().map(move |n| format!("{name}{n}")).collect::<Vec<_>>()
                    };
                    names = names.iter().flat_map(with).collect();
                }
                b']' => return malformed("a `]` that closes nothing", self.at),
                _ => {
                    let text = &self.list[self.at..];
                    let end = text.find([',', '[', ']']).unwrap_or(text.len());
                    names.iter_mut().for_each(|name| name.push_str(&text[..end]));
                    self.at += end;
                }
            }
        }
        Ok(names)
    }

    /// The numbers in a bracket, with their zeros.
    fn ranges(&mut self) -> Result<Vec<String>, Malformed> {
        let open = self.at;
        let mut numbers = Vec::new();
        loop {
            self.at += 1;
            let from = self.at;
            let first = self.digits()?;
            let last = match self.next() {
                Some(b'-') => {
                    self.at += 1;
                    self.digits()?
                }
                _ => first,
            };
            let [low, high] = [first, last].map(str::parse::<usize>);
            let (Ok(low), Ok(high)) = (low, high) else {
                return malformed("a number that is too long", from);
            };
            if low > high {
                return malformed("a range that runs backwards", from);
            }
            if (high - low).saturating_add(numbers.len()) >= HOSTS_MAX {
                return malformed("more hosts than there can be", from);
            }
            let width = first.len();
            numbers.extend((low..=high).map(|number| format!("{number:0width$}")));
            match self.next() {
                Some(b',') => {}
                Some(b']') => break,
                Some(_) => return malformed("neither `,`, `-` nor `]` after a number", self.at),
                None => return malformed("a `[` that is never closed", open),
            }
        }
        self.at += 1;
        Ok(numbers)
    }

    fn digits(&mut self) -> Result<&'a str, Malformed> {
        let text = &self.list[self.at..];
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        if end == 0 {
            return malformed("no number in a bracket", self.at);
        }
        self.at += end;
        Ok(&text[..end])
    }
}

/// Tasks of each node, run by run: `4(x2),3` is four on two nodes and three on one.
///
/// # Errors
/// The fault of the text, and where it is.
pub fn counts(text: &str) -> Result<Vec<(usize, usize)>, Malformed> {
    let mut at = 0;
    let mut all = Vec::new();
    for part in text.split(',') {
        let (tasks, nodes) = match part.strip_suffix(')').and_then(|part| part.split_once("(x")) {
            Some((tasks, nodes)) => (tasks, nodes),
            None => (part, "1"),
        };
        match (tasks.parse::<usize>(), nodes.parse::<usize>()) {
            (Ok(tasks), Ok(nodes)) if tasks > 0 && nodes > 0 => all.push((tasks, nodes)),
            _ => return malformed("no number of tasks", at),
        }
        at += part.len() + 1;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_as_slurm_writes_them() {
        // Each was checked with `scontrol show hostnames` of Slurm 22.05.
        for (list, expected) in [
            ("n1", "n1"),
            ("n[1-3,7],m05", "n1 n2 n3 n7 m05"),
            ("gpu[008-011]", "gpu008 gpu009 gpu010 gpu011"),
            ("n[9-11]", "n9 n10 n11"),
            ("r[1-2]n[01-02]", "r1n01 r1n02 r2n01 r2n02"),
            ("a-b.example.org,10.0.0.7", "a-b.example.org 10.0.0.7"),
        ] {
            assert_eq!(hosts(list).unwrap().join(" "), expected, "{list}");
        }
        // Which it refuses, but whose meaning is plain.
        assert_eq!(hosts("tux[3,1]x").unwrap(), ["tux3x", "tux1x"]);
    }

    #[test]
    fn what_is_no_list_is_named_with_its_place() {
        for (list, expected) in [
            ("", "a host without a name at character 1"),
            ("a,,b", "a host without a name at character 3"),
            ("a,", "a host without a name at character 3"),
            ("n[1-3", "a `[` that is never closed at character 2"),
            ("n1]", "a `]` that closes nothing at character 3"),
            ("n[]", "no number in a bracket at character 3"),
            ("n[1-]", "no number in a bracket at character 5"),
            ("n[3-1]", "a range that runs backwards at character 3"),
            ("n[1;2]", "neither `,`, `-` nor `]` after a number at character 4"),
            ("n[1-999999999]", "more hosts than there can be at character 3"),
            ("n[1-99999][1-99999]", "more hosts than there can be at character 20"),
            ("n[99999999999999999999]", "a number that is too long at character 3"),
        ] {
            assert_eq!(hosts(list).unwrap_err().to_string(), expected, "{list}");
        }
    }

    #[test]
    fn counts_of_tasks_are_read_as_slurm_writes_them() {
        assert_eq!(counts("4"), Ok(vec![(4, 1)]));
        assert_eq!(counts("4(x2),3"), Ok(vec![(4, 2), (3, 1)]));
        for (text, at) in [("", 1), ("4,x", 3), ("4(x)", 1), ("0", 1), ("4(x2),", 7)] {
            let what = format!("no number of tasks at character {at}");
            assert_eq!(counts(text).unwrap_err().to_string(), what, "{text}");
        }
    }

    /// A range as it is written, and the numbers in it.
    fn range() -> impl Strategy<Value = (String, Vec<String>)> {
        (0_usize..2000, 0_usize..30, 1_usize..6, any::<bool>()).prop_map(
            |(low, more, width, is_single)| match is_single {
                true => (format!("{low:0width$}"), vec![format!("{low:0width$}")]),
                false => {
                    let high = low + more;
                    let numbers = (low..=high).map(|n| format!("{n:0width$}")).collect();
                    (format!("{low:0width$}-{high:0width$}"), numbers)
                }
            },
        )
    }

    /// An item with up to two brackets, and the hosts that it stands for.
    fn item() -> impl Strategy<Value = (String, Vec<String>)> {
        let bracket = prop::collection::vec(range(), 1..4);
        let brackets = prop::collection::vec((bracket, "[a-z.-]{0,3}"), 0..3);
        ("[a-z][a-z0-9-]{0,5}", brackets).prop_map(|(head, brackets)| {
            let (mut text, mut names) = (head.clone(), vec![head]);
            for (ranges, tail) in brackets {
                let written: Vec<&str> = ranges.iter().map(|(text, _)| text.as_str()).collect();
                text += &format!("[{}]{tail}", written.join(","));
                let numbers: Vec<&String> = ranges.iter().flat_map(|(_, n)| n).collect();
                names = names
                    .iter()
                    .flat_map(|name| numbers.iter().map(move |n| format!("{name}{n}")))
                    .map(|name| name + &tail)
                    .collect();
            }
            (text, names)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_was_written_is_read(items in prop::collection::vec(item(), 1..5)) {
            let text: Vec<&str> = items.iter().map(|(text, _)| text.as_str()).collect();
            let expected: Vec<String> = items.iter().flat_map(|(_, names)| names.clone()).collect();
            prop_assert_eq!(hosts(&text.join(",")).unwrap(), expected);
        }

        #[test]
        fn no_text_panics_and_places_lie_in_it(text in "[an1-3,\\[\\]é]{0,20}") {
            match hosts(&text) {
                Ok(names) => prop_assert!(names.iter().all(|name| !name.is_empty())),
                Err(error) => prop_assert!(error.at <= text.len()),
            }
            if let Err(error) = counts(&text) {
                prop_assert!(error.at <= text.len());
            }
        }

        #[test]
        fn counts_survive(runs in prop::collection::vec((1_usize..99, 1_usize..99), 1..5)) {
            let text: Vec<String> = runs
                .iter()
                .map(|&(tasks, nodes)| match nodes {
                    1 => tasks.to_string(),
                    nodes => format!("{tasks}(x{nodes})"),
                })
                .collect();
            prop_assert_eq!(counts(&text.join(",")).unwrap(), runs);
        }
    }
}
