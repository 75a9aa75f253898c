//! The arguments of `holofs push`. See `cli::remote`.

use std::ffi::OsString;
use std::time::Duration;

use super::values::seconds;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "URL is s3://BUCKET/PATH, gs://, az://, https:// or file:///DIRECTORY. Credentials come from the
usual variables and files of each service: AWS_* and ~/.aws, GOOGLE_APPLICATION_CREDENTIALS,
AZURE_*. AWS_ENDPOINT_URL names another store than Amazon's. Never put them into the URL.

Only what the store lacks is sent, and every blob is verified before. A push that was interrupted
is repeated. Without CATALOG all environments are pushed. What `holofs warm --pycache` has compiled
is pushed too.

Examples:
  holofs push auto s3://envs/team
  holofs push auto s3://envs/team adb8c26db4d86a93 --dry-run
  AWS_ENDPOINT_URL=http://127.0.0.1:3900 holofs push auto s3://envs"
)]
pub(super) struct Args {
    /// The library, as for mount
    pub(super) library: OsString,
    /// The object store
    pub(super) url: String,
    /// Catalogs to push: their names, or the first digits of their blueprints' hashes
    #[arg(value_name = "CATALOG")]
    pub(super) catalogs: Vec<String>,
    /// What mounts prefetch: what mounts of this machine read, nothing, or the profile in a file
    #[arg(long, value_name = "auto|none|FILE", default_value = "auto")]
    pub(super) profile: OsString,
    /// Send small files again, in packs in the order of the profile
    #[arg(long)]
    pub(super) repack: bool,
    /// Only tell what would be sent
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Seconds after which the push fails while the store does not answer [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(super) remote_timeout: Option<Duration>,
}
