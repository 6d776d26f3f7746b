//! Secrets: where they come from, what is said when they cannot be had, and that nothing ever shows one.

use std::fs;

use insta::assert_snapshot;

use super::*;

#[test]
fn renders_secrets_without_showing_them() {
    let text = rendered(&format!(
        "{SOUND}[upstream]\nconnection_token = 'hunter2'\n[placement]\nhash_key = {{ value = 'hunter2', file = 'x', env = 'y' }}\n"
    ));
    assert!(!text.contains("hunter2"), "{text}");
    assert_snapshot!(text);
}

#[test]
fn secrets_that_cannot_be_had_are_said_so() {
    let cases = [
        ("{}", "must have either `env` or `file`"),
        ("{ env = 'NOT_SET' }", "takes the environment variable \"NOT_SET\", which is not set"),
        ("{ env = 'EMPTY' }", "takes the environment variable \"EMPTY\", which is empty"),
        ("{ env = 'A=B' }", "takes the environment variable \"A=B\", which cannot be the name of one"),
        ("{ env = 1 }", "has `env`, which must be a string, not an integer"),
        ("{ env = 'A', file = 'B' }", "must have either `env` or `file`, not both"),
        ("{ file = '/nowhere/token' }", "takes the file \"/nowhere/token\", which does not exist"),
        ("{ file = '/' }", "takes the file \"/\", which is a folder"),
        ("{ file = '/dev/null' }", "takes the file \"/dev/null\", which is empty"),
        ("{ file = '/dev/zero' }", "takes the file \"/dev/zero\", which is larger than 64 KiB"),
        (
            "{ file = '$CREDENTIALS_DIRECTORY/token' }",
            "takes the file \"$CREDENTIALS_DIRECTORY/token\", which begins with $CREDENTIALS_DIRECTORY, which is not set",
        ),
        ("{ file = '$HOME/token' }", "takes the file \"$HOME/token\", which does not exist"),
        ("7", "must be `{ env = \"NAME\" }` or `{ file = \"PATH\" }`, not an integer"),
    ];
    for (written, expected) in cases {
        let messages = messages_with(&format!("[upstream]\nconnection_token = {written}"));
        assert_eq!(messages, [format!("`upstream.connection_token` {expected}")], "{written}");
    }
}

#[test]
fn secrets_resolve_from_environment_file_and_text() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "from file\r\n\n").unwrap();
    let path = folder.path().join("sessile.toml");
    let read = |more: &str| parse_in(&format!("{SOUND}{more}"), "o", &path, &environment).unwrap();
    let token =
        |written: &str| read(&format!("[upstream]\nconnection_token = {written}")).upstream.connection_token;
    assert_eq!(token("{ env = 'TOKEN' }").unwrap().reveal(), "s3cret");
    assert_eq!(token("{ file = 'token' }").unwrap().reveal(), "from file");
    assert_eq!(
        read("[upstream.connection_token]\nfile = 'token'").upstream.connection_token.unwrap().reveal(),
        "from file"
    );
    let key = |written: &str| read(&format!("[placement]\nhash_key = {written}")).placement.hash_key;
    assert_eq!(key("'in the open'").reveal(), "in the open");
    assert_eq!(key("{ env = 'TOKEN' }").reveal(), "s3cret");
}

#[test]
fn a_credential_of_the_unit_is_found_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "from systemd\n").unwrap();
    let environment = |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| folder.path().into());
    let read = |path: &str| {
        let text = format!("{SOUND}[upstream]\nconnection_token = {{ file = '{path}' }}");
        parse_in(&text, "o", Path::new("o"), &environment)
    };
    let token = read("$CREDENTIALS_DIRECTORY/token").unwrap().upstream.connection_token;
    assert_eq!(token.unwrap().reveal(), "from systemd");
    for wrong in ["$CREDENTIALS_DIRECTORY/other", "$CREDENTIALS_DIRECTORYtoken", "$CREDENTIALS_DIRECTORY"] {
        read(wrong).expect_err(wrong);
    }
}

#[test]
fn no_output_of_any_kind_shows_a_secret() {
    let texts = [
        "[upstream]\nconnection_token = 'hunter2'",
        "[upstream]\nconnection_token = hunter2",
        "[upstream]\nconnection_token = \"hunter2",
        "[upstream]\nconnection_token: hunter2",
        "[upstream]\nconnection_token = '''\nhunter2'''",
        "upstream = { connection_token = 'hunter2', typo = 1 }",
        "upstream = { connection_token = 'hunter2', typo = }",
        "[upstream]\nconnection_token = { evn = 'hunter2' }",
        "[upstream]\nconnection_token = ['hunter2']",
        "[placement]\nhash_key = 'hunter2'\nhash_key = 'hunter2'",
        "[upstream]\n\"connection_token\" = hunter2",
        "[admin]\ntoken = 'hunter2'",
        "[admin]\ntoken = hunter2",
        "[admin]\ntoken = 'hunter2",
    ];
    for text in texts {
        let problems = parsed(&format!("{text}\n{SOUND}")).expect_err(text);
        let all = format!("{}{}{problems}{problems:?}", problems.render(false), problems.render(true));
        assert!(!all.contains("hunter2"), "{all}");
    }
    let config =
        sound_with("[upstream]\nconnection_token = { env = 'TOKEN' }\n[placement]\nhash_key = 'hunter2'");
    let all = format!("{config:?}{:?}", diff(&sound_with(""), &config));
    assert!(!all.contains("s3cret") && !all.contains("hunter2"), "{all}");
}

#[test]
fn an_admin_token_is_hard_to_guess() {
    for (written, expected) in [
        ("{ env = 'TOKEN' }", "must be 16 to 1024 characters long, not 6"),
        ("{ env = 'SPACED' }", "must be letters, digits and signs of ASCII without a space between them"),
        ("'0123456789abcdef'", "must not be written out in this file"),
    ] {
        let messages = messages_with(&format!("[admin]\ntoken = {written}"));
        assert_eq!(messages, [format!("`admin.token` {expected}")], "{written}");
    }
}

#[test]
fn an_open_admin_address_needs_a_token() {
    for open in ["0.0.0.0:9321", "[::]:9321", "10.0.0.1:9321"] {
        let address = format!("[admin]\naddress = '{open}'\n");
        let messages = messages_with(&address);
        let rule = "must be a loopback address or a Unix socket path while there is neither `token` nor `tls` with \
                    `client_ca`, not";
        assert_eq!(messages, [format!("`admin.address` {rule} \"{open}\"")]);
        let locked = sound_with(&format!("{address}token = {{ env = 'ADMIN_TOKEN' }}"));
        assert_eq!(locked.admin.token.unwrap().reveal(), "0123456789abcdef");
        // That the token cannot be had is one problem, not two.
        assert_eq!(messages_with(&format!("{address}token = {{ env = 'NOT_SET' }}")).len(), 1);
    }
    for closed in ["127.0.0.1:9321", "[::1]:9321", "/run/sessile.sock"] {
        assert_eq!(sound_with(&format!("[admin]\naddress = '{closed}'")).admin.token, None);
    }
}
