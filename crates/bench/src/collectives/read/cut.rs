//! JSON that ends too early: a disk was full, or a job was killed while it wrote.

/// The text up to the last whole object of a list, with everything closed that is open there;
/// `None` of what is no JSON object or list, ends as it should, or has no such object.
pub fn closed(text: &str) -> Option<String> {
    if !text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let (mut open, mut last): (Vec<char>, Option<(usize, Vec<char>)>) = (Vec::new(), None);
    let (mut in_string, mut is_escaped) = (false, false);
    for (at, c) in text.char_indices() {
        if in_string {
            in_string = is_escaped || c != '"';
            is_escaped = c == '\\' && !is_escaped;
            continue;
        }
        match c {
            '"' => in_string = true,
            '{' => open.push('}'),
            '[' => open.push(']'),
            '}' | ']' => {
                // Damaged otherwise: the parser says where.
                open.pop().filter(|close| *close == c)?;
                if c == '}' && open.last() == Some(&']') {
                    last = Some((at + 1, open.clone()));
                }
            }
            _ => {}
        }
    }
    let (end, open) = last.filter(|_| !open.is_empty())?;
    Some(text[..end].chars().chain(open.into_iter().rev()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_behind_the_last_row_is_closed() {
        let whole = r#"{"a": [1, {"b": "}]\""}], "results": [{"s": [1]}, {"s": [2]}], "c": 1}"#;
        assert_eq!(closed(whole), None);
        let at = |cut: &str| closed(&whole[..whole.find(cut).unwrap()]);
        assert_eq!(at("[2]").unwrap(), r#"{"a": [1, {"b": "}]\""}], "results": [{"s": [1]}]}"#);
        assert_eq!(at(", \"c").unwrap().matches("{\"s\"").count(), 2);
        assert_eq!(at("\"}]"), None);
        assert_eq!(closed("{\"a\": ]"), None);
        assert_eq!(closed("[1,0]<stdout>:# size"), None);
        assert_eq!(closed("# [{"), None);
    }
}
