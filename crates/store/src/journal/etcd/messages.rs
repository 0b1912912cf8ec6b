//! The messages of etcd that are used here, generated from `proto/`.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "they are generated")]

tonic::include_proto!("etcdserverpb");
