//! The operator's page: static files without data, which everybody may read.
//!
//! The page reads its data from the API, with the operator's token.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The path, content type and text of each file.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("index.html")),
    ("/page.css", CSS, include_str!("page.css")),
    ("/page.js", SCRIPT, include_str!("page.js")),
    ("/page/api.js", SCRIPT, include_str!("api.js")),
    ("/page/dialogs.js", SCRIPT, include_str!("dialogs.js")),
    ("/page/dom.js", SCRIPT, include_str!("dom.js")),
    ("/page/fleet.js", SCRIPT, include_str!("fleet.js")),
    ("/page/live.js", SCRIPT, include_str!("live.js")),
    ("/page/meter.js", SCRIPT, include_str!("meter.js")),
    ("/page/organizations.js", SCRIPT, include_str!("organizations.js")),
    ("/page/override.js", SCRIPT, include_str!("override.js")),
    ("/page/overview.js", SCRIPT, include_str!("overview.js")),
    ("/page/parts.js", SCRIPT, include_str!("parts.js")),
    ("/page/policy.js", SCRIPT, include_str!("policy.js")),
    ("/page/records.js", SCRIPT, include_str!("records.js")),
    ("/page/sessions.js", SCRIPT, include_str!("sessions.js")),
    ("/page/subject.js", SCRIPT, include_str!("subject.js")),
    ("/page/words.js", SCRIPT, include_str!("words.js")),
];

/// Serves the page, without a token: the files contain nothing that is not in this crate.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, &(path, kind, text)| {
        // After an upgrade of the server, a browser must not use cached files of the old version.
        let headers = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")];
        router.route(path, get(move || async move { (headers, text).into_response() }))
    })
}

#[cfg(test)]
mod tests {
    use super::FILES;

    #[test]
    fn every_module_that_the_page_imports_is_served() {
        for (path, _, text) in FILES {
            let folder = if *path == "/page.js" { "/" } else { "/page/" };
            for import in text.lines().filter_map(|line| line.split(" from './").nth(1)) {
                let name = import.trim_end_matches("';");
                let wanted = format!("{folder}{name}");
                assert!(FILES.iter().any(|(path, ..)| *path == wanted), "{path} imports {wanted}");
            }
        }
    }

    #[test]
    fn the_page_parses_no_markup_and_needs_no_other_host() {
        for (path, _, text) in FILES {
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(forbidden), "{path} uses {forbidden}");
            }
            let links = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!links.contains("http://") && !links.contains("https://"), "{path} links away");
        }
    }
}
