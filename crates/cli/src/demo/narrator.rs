//! Prints the demo and counts the checks.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::bar::Bar;
use crate::failure::Failure;
use crate::output::{FAINT, GOOD, NAME, Output, TITLE, WARN, styled};

/// How wide the names of organizations are shown.
const NAME_WIDTH: usize = 10;

/// Prints the demo.
#[derive(Debug)]
pub(super) struct Narrator {
    output: Output,
    scene: u32,
    checks: u32,
}

/// Something to show. The text is for people; JSON carries the same facts.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Opening { version: &'static str },
    Scene { number: u32, title: &'a str },
    Note { text: &'a str },
    Pool { organization: &'a str, service: &'a str, active: u64, max: Option<u64> },
    Refusal { organization: &'a str, scope: &'a str, message: &'a str },
    Check { scene: u32, what: &'a str },
    Finished { checks: u32, milliseconds: u64 },
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening { version } => {
                let rest = format!("{version} · a real server, real clients, nothing simulated");
                write!(f, "{} {}", styled(TITLE, "tgm-session"), styled(FAINT, rest))
            }
            Self::Scene { number, title } => {
                write!(f, "\n{}  {}", styled(NAME, number), styled(TITLE, title))
            }
            Self::Note { text } => write!(f, "   {text}"),
            Self::Pool { organization, service, active, max } => {
                let bar = Bar { active: *active, max: *max };
                let max = max.map_or_else(|| "-".to_owned(), |max| max.to_string());
                write!(
                    f,
                    "   {organization:<NAME_WIDTH$} {}  {active:>2}/{max:<2}  {}",
                    styled(FAINT, service),
                    bar.picture()
                )
            }
            Self::Refusal { organization, scope, message } => {
                let side = format!("(scope: {scope})");
                write!(
                    f,
                    "   {organization:<NAME_WIDTH$} {} {} {}",
                    styled(WARN, "refused"),
                    message,
                    styled(FAINT, side)
                )
            }
            Self::Check { what, .. } => write!(f, "   {} {what}", styled(GOOD, "✓")),
            Self::Finished { checks, milliseconds } => {
                let seconds = Duration::from_millis(*milliseconds).as_secs_f64();
                writeln!(
                    f,
                    "\n{}",
                    styled(GOOD, format_args!("All {checks} checks passed in {seconds:.1} s."))
                )?;
                writeln!(f, "Next:")?;
                writeln!(
                    f,
                    "  tgm-session serve           a server of your own, no set-up needed"
                )?;
                write!(f, "  tgm-session borrow --help   hold a session and watch it")
            }
        }
    }
}

impl Narrator {
    pub(super) fn new(output: Output) -> Self {
        Self { output, scene: 0, checks: 0 }
    }

    /// The number of the current scene.
    pub(super) const fn scene(&self) -> u32 {
        self.scene
    }

    /// Prints the opening.
    pub(super) fn open(&mut self) -> Result<(), Failure> {
        self.show(&Event::Opening { version: env!("CARGO_PKG_VERSION") })
    }

    /// Begins the next scene.
    pub(super) fn begin(&mut self, title: &str) -> Result<(), Failure> {
        self.scene += 1;
        self.show(&Event::Scene { number: self.scene, title })
    }

    /// Prints what happens.
    pub(super) fn note(&mut self, text: impl fmt::Display) -> Result<(), Failure> {
        self.show(&Event::Note { text: &text.to_string() })
    }

    /// Prints how full a pool is.
    pub(super) fn pool(
        &mut self,
        organization: &str,
        service: &str,
        active: u64,
        max: Option<u64>,
    ) -> Result<(), Failure> {
        self.show(&Event::Pool { organization, service, active, max })
    }

    /// Prints a refusal.
    pub(super) fn refusal(
        &mut self,
        organization: &str,
        scope: &str,
        message: &str,
    ) -> Result<(), Failure> {
        self.show(&Event::Refusal { organization, scope, message })
    }

    /// Prints the check `what` if it `holds`. Otherwise the demo fails with what was `seen`.
    pub(super) fn check(
        &mut self,
        holds: bool,
        what: impl fmt::Display,
        seen: impl fmt::Display,
    ) -> Result<(), Failure> {
        if !holds {
            return Err(Failure::Failed(format!(
                "scene {}: the check failed: {what}; instead: {seen}",
                self.scene
            )));
        }
        self.checks += 1;
        self.show(&Event::Check { scene: self.scene, what: &what.to_string() })
    }

    /// Shows the current state on the last line of a terminal; the next line replaces it.
    pub(super) fn live(&mut self, text: impl fmt::Display) -> Result<(), Failure> {
        self.output.show_live(&format_args!("   {text}"))
    }

    /// Gives people time to read. JSON output does not pause.
    pub(super) async fn pause(&self, length: Duration) {
        if self.output.is_live() {
            tokio::time::sleep(length).await;
        }
    }

    /// Prints the end of a demo that passed.
    pub(super) fn finish(&mut self, took: Duration) -> Result<(), Failure> {
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.show(&Event::Finished { checks: self.checks, milliseconds })
    }

    /// Clears the last line of a terminal, so that an error line can follow.
    pub(super) fn abort(&mut self) {
        // The failure that ends the demo matters more than this one.
        let _ = self.output.clear_live();
    }

    fn show(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        self.output.show(event)
    }
}
