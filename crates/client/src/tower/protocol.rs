//! The answer to a caller whose request is refused or whose session is revoked.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Frame;
use tonic::{Code, Status};

use crate::error::Error;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The protocol of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    /// gRPC-Web that no outer layer translates, with its content type. It has no trailers.
    GrpcWeb(HeaderValue),
    Http,
}

impl Protocol {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let Some(kind) = headers.get(CONTENT_TYPE) else { return Self::Http };
        let bytes = kind.as_bytes();
        let essence = bytes.split(|byte| matches!(byte, b'+' | b';' | b' ')).next();
        match essence.unwrap_or_default().to_ascii_lowercase().as_slice() {
            b"application/grpc" => Self::Grpc,
            b"application/grpc-web" | b"application/grpc-web-text" => Self::GrpcWeb(kind.clone()),
            _ => Self::Http,
        }
    }

    /// Makes the response to a request that gets no session, or whose session ended before its answer.
    pub(super) fn refuse(self, error: Error) -> Response<Bytes> {
        if self == Self::Http {
            let status = http_status(error.code());
            let mut response = Response::new(Bytes::from(error.to_string()));
            *response.status_mut() = status;
            let kind = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            return response;
        }
        // In a response without a body every kind of gRPC reads the status from the headers.
        let response = Status::from(error).into_http::<()>();
        let mut response = response.map(|()| Bytes::new());
        if let Self::GrpcWeb(kind) = self {
            response.headers_mut().insert(CONTENT_TYPE, kind);
        }
        response
    }

    /// Makes the last frame of a response whose session has ended.
    pub(super) fn break_off(&self, reason: Error) -> Result<Frame<Bytes>, BoxError> {
        if *self != Self::Grpc {
            return Err(reason.into());
        }
        let mut trailers = HeaderMap::new();
        Status::from(reason).add_header(&mut trailers)?;
        Ok(Frame::trailers(trailers))
    }

    /// Whether a response may announce the length of its body.
    pub(super) fn announces_length(&self) -> bool {
        // In gRPC a revocation ends the body regularly, with trailers, before the announced length.
        *self != Self::Grpc
    }
}

/// Returns the error of the pool for the caller of the service.
///
/// Where the session server does not accept the key of this service, the caller is not at fault.
pub(super) fn answer_to_caller(error: Error) -> Error {
    if error.code() != Code::Unauthenticated {
        return error;
    }
    tracing::error!(%error, "the session server does not accept this service");
    Error::unavailable("this service has no access to it")
}

fn http_status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_determines_the_protocol() {
        let of = |kind: &'static str| {
            let kind = HeaderValue::from_static(kind);
            Protocol::of(&HeaderMap::from_iter([(CONTENT_TYPE, kind)]))
        };
        for grpc in ["application/grpc", "application/grpc+proto", "Application/gRPC; a=b"] {
            assert_eq!(of(grpc), Protocol::Grpc, "{grpc}");
        }
        for web in ["application/grpc-web+proto", "application/grpc-web-text"] {
            assert_eq!(of(web), Protocol::GrpcWeb(HeaderValue::from_static(web)));
        }
        for http in ["application/grpcx", "application/json", ""] {
            assert_eq!(of(http), Protocol::Http, "{http}");
        }
        assert_eq!(Protocol::of(&HeaderMap::new()), Protocol::Http);
    }

    #[test]
    fn every_kind_of_refusal_has_its_http_status() {
        let message = String::new;
        for (error, status) in [
            (Error::invalid(message()), 400),
            (Error::Unauthenticated { message: message() }, 401),
            (Error::PermissionDenied { message: message() }, 403),
            (Error::QuotaExceeded { message: message() }, 429),
            (Error::unavailable(message()), 503),
            (Error::Closed, 503),
        ] {
            let response = Protocol::Http.refuse(error);
            assert_eq!(response.status(), status);
        }
    }

    #[test]
    fn a_refusal_of_grpc_web_keeps_its_content_type() {
        let kind = HeaderValue::from_static("application/grpc-web+proto");
        let response = Protocol::GrpcWeb(kind.clone()).refuse(Error::Closed);
        assert_eq!((response.status(), &response.headers()[CONTENT_TYPE]), (StatusCode::OK, &kind));
        let status = Status::from_header_map(response.headers()).map(|status| status.code());
        assert_eq!(status, Some(Code::Unavailable));
    }
}
