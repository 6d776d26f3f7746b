//! Configuration files: any text is a configuration or a list of problems that can be shown.

use sessile::config::{diff, parse};

pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Files and variables of the machine are not part of the input.
    if text.contains("env") || text.contains("file") || text.contains('/') && text.contains("ca") {
        return;
    }
    match parse(text, "fuzz") {
        Ok(config) => {
            assert!(diff(&config, &config).is_empty(), "a configuration differs from itself");
            let again = parse(text, "fuzz").unwrap();
            assert!(diff(&config, &again).is_empty(), "one text makes two configurations");
        }
        Err(problems) => {
            assert!(problems.iter().count() > 0);
            for coloured in [false, true] {
                assert!(problems.render(coloured).contains("error"));
            }
            for problem in problems.iter() {
                if let Some(span) = &problem.span {
                    assert!(span.end <= text.len(), "a problem beyond the end");
                }
            }
        }
    }
}
