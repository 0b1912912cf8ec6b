//! Suggestions for misspelt names.

/// Returns a suggestion for the misspelt name `wrong`: ` (did you mean "NAME"?)` with the most similar
/// name among `known`. Empty if none is similar.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    // Bounded, since there may be many long names.
    let near = known.into_iter().take(10_000).filter(|name| {
        let (one, other) = (name.len(), wrong.len());
        one.abs_diff(other) <= 3 && one <= 64 && other <= 64
    });
    let distance =
        |name: &str| strsim::damerau_levenshtein(&wrong.to_lowercase(), &name.to_lowercase());
    let nearest = near.map(|name| (distance(name), name)).min();
    let longest = (wrong.chars().count() / 3).clamp(1, 3);
    match nearest {
        Some((distance, name)) if distance <= longest => format!(" (did you mean {name:?}?)"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_distant_one_is_not() {
        let known = ["default", "t1r", "t2w", "egress_bytes"];
        assert_eq!(nearest("t1", known), " (did you mean \"t1r\"?)");
        assert_eq!(nearest("Egres_bytes", known), " (did you mean \"egress_bytes\"?)");
        for far in ["premium", "", "x", "a_metric_of_somebody_else"] {
            assert_eq!(nearest(far, known), "", "{far}");
        }
    }
}
