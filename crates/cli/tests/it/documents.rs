//! What the binary says about itself: help, completions and manual pages.

use std::process::Command;

use crate::harness::{command, finish, folder, run};

const COMMANDS: [&str; 21] = [
    "serve",
    "demo",
    "borrow",
    "state",
    "check",
    "top",
    "sessions",
    "organizations",
    "refusals",
    "revoke",
    "disable",
    "enable",
    "limit",
    "policy",
    "reload",
    "audit",
    "fleet",
    "step-down",
    "store",
    "completions",
    "man",
];

#[test]
fn help_names_every_command_and_each_shows_how_it_is_used() {
    let help = run(["--help"]).stdout;
    for name in COMMANDS {
        assert!(help.contains(&format!("\n  {name} ")), "{name} is missing: {help}");
        let ran = run([name, "--help"]);
        assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{name}");
        let examples = ran
            .stdout
            .lines()
            .filter(|line| line.trim_start().starts_with(&format!("tgm-session {name}")));
        assert!(examples.count() > 0, "no example for {name}: {}", ran.stdout);
    }
    assert!(help.contains("Exit codes:"), "{help}");
}

#[test]
fn every_shell_has_completions_that_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(["completions", shell]);
        assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{shell}");
        for name in COMMANDS {
            assert!(ran.stdout.contains(name), "{shell} does not know {name}");
        }
        assert!(ran.stdout.contains("admin-token"), "{shell} does not know the flags");
    }
    let ran = run(["completions", "cmd"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("bash"), "it does not say which shells: {ran:?}");
}

#[test]
fn bash_completes_commands_and_their_arguments() {
    let folder = folder();
    let script = folder.path().join("completions");
    std::fs::write(&script, run(["completions", "bash"]).stdout).unwrap();
    let complete = |words: &str| {
        // Bash calls the registered function with the command, the current word and the previous
        // word.
        let line = format!(
            "source {}; set -- $(complete -p tgm-session); COMP_WORDS=({words}); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             ${{@: -2:1}} tgm-session \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; \
             echo \"${{COMPREPLY[*]}}\"",
            script.display()
        );
        let ran = Command::new("bash").args(["--norc", "-c", &line]).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete("tgm-session org"), "organizations");
    assert_eq!(complete("tgm-session disable a"), "api-key");
    assert_eq!(complete("tgm-session organizations --sort f"), "fullest");
}

#[test]
fn every_command_has_a_manual_page_whose_examples_keep_their_lines() {
    let folder = folder();
    let pages = folder.path().join("new/man1");
    let ran = run(["man".as_ref(), "--out".as_ref(), pages.as_os_str()]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""));
    assert_eq!(ran.stdout.lines().count(), COMMANDS.len() + 1);
    for name in COMMANDS {
        let page = std::fs::read_to_string(pages.join(format!("tgm-session-{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH tgm-session-{name} 1")), "{page}");
        assert!(page.contains(".SH OPTIONS"), "{page}");
        let examples = page.split_once(".nf").and_then(|(_, rest)| rest.split_once(".fi"));
        let (examples, _) = examples.unwrap_or_else(|| panic!("no examples: {page}"));
        let escaped = name.replace('-', "\\-");
        assert!(examples.contains(&format!("\n  tgm\\-session {escaped}")), "{examples}");
    }
    let main = std::fs::read_to_string(pages.join("tgm-session.1")).unwrap();
    assert_eq!(run(["man"]).stdout, main);
    assert!(main.contains(".SH SUBCOMMANDS") && main.contains("Exit codes"), "{main}");
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named() {
    let folder = folder();
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "a file").unwrap();
    let ran = run(["man".as_ref(), "--out".as_ref(), taken.as_os_str()]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.error().contains("taken"), "{ran:?}");
}

#[test]
fn completions_and_pages_for_a_closed_pipe_cause_no_panic() {
    for args in [&["completions", "bash"][..], &["man"]] {
        let mut command = command(args);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer);
        let ran = finish(command);
        assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{args:?}");
    }
}
