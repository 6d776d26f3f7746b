//! No text brings the checker down, and none makes it go on without end.

use proptest::prelude::{Strategy as _, any, prop_oneof, proptest};
use std::fmt::Write as _;

use super::files::example_in_full;
use super::*;

#[test]
fn many_problems_end() {
    let mut text = String::from(SOUND);
    for n in 0..5_000 {
        writeln!(text, "key_{n} = 1").unwrap();
    }
    let problems = parsed(&text).expect_err("unknown keys");
    assert_eq!((problems.iter().count(), problems.count()), (LISTED_MAX, 5_000));
    assert!(problems.render(false).ends_with("sessile.toml: 5000 problems, 4900 of them not shown\n"));
    assert!(problems.to_string().ends_with("and 4900 more"));
}

#[test]
fn long_lines_are_named_but_not_shown() {
    let problems = parsed(&format!("{SOUND}x = '{}'\n", "y".repeat(100_000))).expect_err("an unknown key");
    let text = problems.render(false);
    assert!(text.len() < 1_000 && text.contains("sessile.toml:7:1"), "{text}");
}

#[test]
fn deep_nesting_is_a_problem_and_no_overflow() {
    for open in ["[", "{a=", "a."] {
        assert!(parsed(&format!("a = {}", open.repeat(300_000))).is_err());
        assert!(parsed(&format!("{}a = 1", open.repeat(300_000))).is_err());
    }
}

#[test]
fn every_prefix_and_every_lost_byte_of_the_example_is_survived() {
    let text = example_in_full();
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        survives(text.get(..end).unwrap());
    }
    let bare = |line: &&str| !line.starts_with('#') && !line.is_empty();
    let text = text.lines().filter(bare).collect::<Vec<_>>().join("\n");
    for lost in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes.remove(lost);
        survives(&String::from_utf8_lossy(&bytes));
    }
}

/// Parses, and shows what was wrong in every way there is.
fn survives(text: &str) {
    if let Err(problems) = parsed(text) {
        assert!(problems.iter().count() > 0);
        let rendered = problems.render(false);
        assert!(rendered.starts_with("error: "), "{rendered}");
        assert!(!problems.to_string().is_empty());
        for Problem { span, position, .. } in problems.iter() {
            assert_eq!(span.is_some(), position.is_some());
        }
    }
}

/// Text that looks enough like a configuration to reach the deeper checks.
fn nearly_toml() -> impl proptest::strategy::Strategy<Value = String> {
    let word = prop_oneof![
        proptest::sample::select(
            SECTIONS.iter().flat_map(|section| section.keys.iter().copied()).collect::<Vec<_>>()
        )
        .prop_map(str::to_owned),
        proptest::sample::select(SECTIONS.iter().map(ToString::to_string).collect::<Vec<_>>()),
        proptest::sample::select(vec![
            "\n",
            "\n",
            "\r\n",
            " = ",
            " = ",
            "\"",
            "'",
            "\"\"\"",
            "'''",
            "[",
            "]",
            "{",
            "}",
            ",",
            ".",
            "#",
            "\t",
            "\\u",
            "0s",
            "'2s'",
            "'1MiB'",
            "1",
            "-1",
            "1e9",
            "inf",
            "true",
            "2020-01-01",
            "env",
            "file",
            "'a:1'",
            "ä",
            "\u{feff}",
            "\u{0}",
            "漢",
            "\u{200d}",
            "\u{1b}",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    proptest::collection::vec(word, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_text_is_survived(text in any::<String>()) {
        survives(&text);
    }

    #[test]
    fn anything_like_toml_is_survived(text in nearly_toml()) {
        survives(&text);
    }

    #[test]
    fn any_string_as_any_value_is_survived(value in any::<String>(), at in 0usize..64) {
        let keys: Vec<_> = SECTIONS.iter().flat_map(|s| s.keys.iter().map(move |key| (s, key))).collect();
        let (section, key) = keys.get(at.checked_rem(keys.len()).unwrap()).unwrap();
        survives(&format!("{section}\n{key} = {value:?}\n"));
        survives(&format!("{section}\n{key} = '''{value}'''\n"));
    }
}
