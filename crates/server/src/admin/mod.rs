//! The admin port: health probes, metrics, the API for operators and the operator's page.

pub(crate) mod api;
mod events;
mod guard;
mod metrics_page;
mod page;
mod passing;
mod port;
mod snapshot;
mod state;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state, map_request};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use store::Unavailable;
use store::fleet::Leader;

use crate::config::TokenInForce;
use api::edge::{Failure, MAX_BODY};
use guard::Guard;
pub(crate) use port::serve;
pub(crate) use state::Admin;

/// The pages of the admin port, which listens on `address`.
///
/// Probes need no token and no place. The page contains no data, so it needs no token; pages of other
/// sites may not read it. Everything else needs the token, if there is one.
pub(crate) fn router(
    admin: Arc<Admin>,
    token: Option<Arc<TokenInForce>>,
    address: SocketAddr,
) -> Router {
    let guard = Guard::new(token, address);
    Router::new()
        .merge(api::router(guard.needs_token()))
        .route("/metrics", get(metrics_page::page))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(admin.clone(), passing::pass_on))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        // A request without a valid token takes no place.
        .layer(from_fn(port::places::take_place))
        .layer(from_fn_with_state(guard.clone(), guard::require_token))
        .merge(page::router().layer(from_fn(port::places::take_place)))
        .layer(from_fn_with_state(guard, guard::refuse_other_sites))
        .route("/healthz", get(alive))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn(guard::add_headers))
        .with_state(admin)
}

/// The API for requests that another server of the fleet passes on. That server has checked them, and
/// each brings the address of the operator as an extension.
pub(crate) fn router_of_fleet(admin: Arc<Admin>) -> Router {
    Router::new()
        .merge(api::router(false))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_request(async |mut request: Request| {
            let peer = request.extensions().get::<SocketAddr>().copied();
            request.extensions_mut().insert(api::Peer(peer.unwrap_or(UNKNOWN)));
            request
        }))
        .with_state(admin)
}

/// The address of an operator that another server did not name.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

async fn not_found(request: Request) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", request.uri().path()))
}

async fn method_not_allowed(request: Request) -> Failure {
    let (method, path) = (request.method(), request.uri().path());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("there is no {method} of {path}"))
}

/// Answers while the process runs. It does not ask the store: a restart does not repair a disk.
async fn alive() -> &'static str {
    "ok\n"
}

/// What `/readyz` says of a server that is ready, with the leader of its fleet, if it has one.
fn ready_text(leads: bool, leader: Option<&Option<Leader>>) -> String {
    match leader {
        None => "ready\n".to_owned(),
        Some(Some(Leader { epoch, .. })) if leads => {
            format!("ready: leads the fleet in term {epoch}\n")
        }
        Some(Some(Leader { epoch, address, .. })) => {
            format!("ready: stands by, and {address} leads in term {epoch}\n")
        }
        Some(None) => "ready: no server is known to lead the fleet\n".to_owned(),
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    match admin.ready() {
        Ok(()) => {
            let leader = admin.store.fleet().map(|(_, leader)| leader.borrow().clone());
            ready_text(admin.store.leads(), leader.as_ref()).into_response()
        }
        Err(error @ Unavailable::Stalled) => {
            let seconds = admin.store.stalled().as_secs_f64();
            let problem = format!("{error}: a commit has been in flight for {seconds:.1} s\n");
            (StatusCode::SERVICE_UNAVAILABLE, problem).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use store::fleet::LeaderId;

    use super::*;

    #[test]
    fn a_server_that_is_ready_says_what_its_part_in_the_fleet_is() {
        assert_eq!(ready_text(true, None), "ready\n");
        let address = "10.0.0.1:9010".into();
        let leader = Some(Leader { epoch: 7, id: LeaderId(1), address, is_self: true });
        assert_eq!(ready_text(true, Some(&leader)), "ready: leads the fleet in term 7\n");
        let standby = "ready: stands by, and 10.0.0.1:9010 leads in term 7\n";
        assert_eq!(ready_text(false, Some(&leader)), standby);
        let nobody = "ready: no server is known to lead the fleet\n";
        assert_eq!(ready_text(false, Some(&None)), nobody);
    }
}
