//! Protocol and policy of the mount helper.
