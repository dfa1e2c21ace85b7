//! The valid word that was probably meant.

/// The candidate most like `word`, if one is close enough to be worth saying: few edits for its
/// length, or one contains the other.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let word = plain(word);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let other = plain(candidate);
            let edits = strsim::damerau_levenshtein(&word, &other);
            let longest = word.chars().count().max(other.chars().count());
            let contained = word.len() >= 4 && (other.contains(&word) || word.contains(&other));
            (edits * 3 <= longest.max(3) || contained).then_some((edits, candidate))
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognized_and_strangers_are_not() {
        let keys = ["d_model", "layers", "heads", "kv_heads", "lr", "tie_embeddings"];
        for (word, meant) in [
            ("d_modle", Some("d_model")),
            ("dmodel", Some("d_model")),
            ("layer", Some("layers")),
            ("LR", Some("lr")),
            ("head", Some("heads")),
            ("embeddings", Some("tie_embeddings")),
            ("tie-embeddings", Some("tie_embeddings")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
    }
}
