//! A policy file as the server loads it: its settings, and the files that it names.

use tgm_session_server::{Error, Loaded};

/// The error for `text`, which must have one line.
fn refusal(text: &str) -> String {
    let error = Loaded::parse(text, "test.toml").map(drop).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn the_refusal_of_a_file_names_file_line_and_reason() {
    for (text, place, reason) in [
        ("[services.t1r]\nmax_per_orgnization = 3", "2:1", "unknown field `max_per_orgnization`"),
        ("[service.t1r]", "1:2", "unknown field `service`"),
        ("[server]\nlisten = \"here\"", "2:10", "write an address and a port"),
        ("[services.t1r]\nmax_total = -3", "2:13", "integer `-3`, expected a whole number, 0"),
        ("[services.t1r]\nmax_total = 1.5", "2:13", "expected a whole number"),
        ("[services.t1r]\nmax_unnamed_services = 5", "2:24", "belongs into [services.default]"),
        ("[services.t1r]\nttl = \"60\"", "2:7", "expected a duration such as \"60s\""),
        ("[services.t1r]\nttl = 60", "2:7", "expected a duration"),
        ("[services.t1r]\nttl = \"0s\"", "2:7", "ttl must be over 0"),
        ("[services.t1r]\nttl = \"169h\"", "2:7", "at most 7 days"),
        ("[services.t1r]\nminimal_life = \"11m\"", "2:16", "at most 10m"),
        ("[organizations.acme]\nplan = \"pro\"", "2:8", "there is no plan \"pro\""),
        (
            "[services.t1r]\n[plans.pro]\nlimits = { t2w = 3 }",
            "3:12",
            "there is no service \"t2w\"",
        ),
        ("[services.t1r]\n[organizations.a]\nlimits = { x = 3 }", "3:12", "no service \"x\""),
        ("[services.t1r]\n[api_keys.a]\nlimits = { x = 3 }", "3:12", "no service \"x\""),
        ("[services.t1r]\nmax_total = 1\nmax_total = 2", "3:1", "duplicate key"),
        ("[services.t1r\n", "1:14", ""),
        ("[plans.p]\nbudgets = { m = { amount = -1, per = \"day\" } }", "2:28", "0 or more"),
        ("[plans.p]\nbudgets = { m = { amount = nan, per = \"day\" } }", "2:28", "0 or more"),
        ("[plans.p]\nbudgets = { m = { amount = 1, per = \"week\" } }", "2:37", "`day` or `month`"),
        ("[plans.p]\nbudgets = { m = { amount = 1 } }", "2:17", "missing field `per`"),
        ("[[indexers]]\nname = \"w\"\nkey_sha256 = \"hunter2\"", "3:14", "not 64 hex digits"),
        ("[[indexers]]\nname = \"w\"\nkey_sha256 = []", "3:14", "expected the SHA-256"),
        ("[[indexers]]\nname = \"w\"", "2:8", "add key_sha256 or key_sha256_file"),
        (
            "[[indexers]]\nname = \"w\"\nkey_sha256_file = \"/nowhere\"",
            "3:19",
            "key_sha256_file /nowhere: No such file",
        ),
        (
            // The outputs of `printf %s "$UNSET" | sha256sum` and `echo "$UNSET" | sha256sum`.
            "[[indexers]]\nname = \"w\"\nkey_sha256 = \
             \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
            "3:14",
            "it is the SHA-256 of the empty text",
        ),
        (
            "[[indexers]]\nname = \"w\"\nkey_sha256 = [\n\
             \"01BA4719C80B6FE911B091A7C05124B64EEECE964E09C058EF8F9805DACA546B\"]",
            "4:1",
            "it is the SHA-256 of a lone newline",
        ),
        ("[organizations.\"\"]", "1:16", "a name is empty"),
    ] {
        let error = refusal(text);
        assert!(error.starts_with(&format!("test.toml:{place}: ")), "{text:?} gave {error}");
        assert!(error.contains(reason), "{text:?} gave {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn keys_may_stand_in_a_file_beside_the_policy() {
    use sha2::{Digest as _, Sha256};
    let digest = |key: &str| hex::encode(Sha256::digest(key));
    let folder = tempfile::tempdir().unwrap();
    let (path, keys) = (folder.path().join("policy.toml"), folder.path().join("keys/west"));
    std::fs::create_dir(keys.parent().unwrap()).unwrap();
    std::fs::write(&keys, format!("# west\n{}\n{} # new\n", digest("old"), digest("new"))).unwrap();
    let text = format!(
        "[services.t1r]\n[[indexers]]\nname = \"west\"\nkey_sha256_file = \"keys/west\"\n\
         key_sha256 = \"{}\"\n",
        digest("here")
    );
    std::fs::write(&path, &text).unwrap();
    let policy = Loaded::load(&path).unwrap().policy;
    for key in ["old", "new", "here"] {
        assert_eq!(policy.identify(Some(key.as_bytes())).unwrap().unwrap().name(), "west");
    }
    for (contents, place, problem) in [
        ("hunter2\n".to_owned(), format!("{}:1:1", keys.display()), "it is not 64 hex digits"),
        (digest(""), format!("{}:1:1", keys.display()), "the empty text"),
        (
            format!("\n{}", digest("here")),
            format!("{}:2:1", keys.display()),
            "a key of indexer \"west\" is a key of \"west\" already",
        ),
        (String::new(), format!("{}:4:19", path.display()), "there is no digest in it"),
    ] {
        std::fs::write(&keys, contents).unwrap();
        let error = Loaded::load(&path).unwrap_err().to_string();
        assert!(error.starts_with(&place) && error.contains(problem), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Error::from(Loaded::load("/nowhere/policy.toml").map(drop).unwrap_err());
    assert!(matches!(error, Error::PolicyUnreadable { .. }), "{error:?}");
    assert!(error.to_string().contains("/nowhere/policy.toml"), "{error}");
    assert!(error.is_usage());
}
