//! The variables of a space, for a program that somebody else starts: mounts the space if it is not mounted.

use std::time::Duration;

use super::activation::{Activation, ActivationError, ActivationFlags};
use crate::activate::Variable;
use crate::activate::temp::Temp;
use crate::blueprint::BlueprintError;
use crate::session::end::{How, unmount};
use crate::session::request::MountRequest;
use crate::session::start::mount_to_stay;
use crate::session::{Describe, Error, registry};
use crate::settings::{MountSettings, Settings};
use crate::space::home::Env;

/// What to print the variables of.
#[derive(Clone, Debug)]
pub struct VariablesRequest {
    /// The space.
    pub mount: MountRequest,
    /// The variables.
    pub activation: ActivationFlags,
    /// Fail if the space is not mounted.
    pub no_mount: bool,
    /// Mount it anew, without its changes.
    pub force: bool,
}

/// The variables of a space, in rcc's order. The space is mounted afterwards, and stays so. `note` tells the user what was
/// not typed and counts.
///
/// # Errors
/// When the space cannot be mounted, or what was typed cannot be used.
pub fn variables(
    mut request: VariablesRequest,
    settings: &Settings,
    mount: &MountSettings,
    env: &Env,
    describe: Describe,
    note: &mut dyn FnMut(&str),
) -> Result<Vec<Variable>, ActivationError> {
    let activation = Activation::new(&request.activation, settings, mount, env)?;
    request.mount.choice = request.mount.choice.or_robot_here();
    if request.mount.is_unspecific() && request.mount.choice.is_empty() {
        return Err(Error::Blueprint(BlueprintError::NoFile).into());
    }
    let mut plan = request.mount.plan(settings, mount, env)?;
    for text in plan.notes() {
        note(&format!("holofs: {text}"));
    }
    let state_dir = plan.state_dir();
    let live = registry::find(&state_dir)?;
    if request.no_mount && live.is_none() {
        return Err(Error::NotMounted(plan.space.mountpoint.clone()).into());
    }
    if request.force {
        if let Some(live) = live {
            let how = How { lazy: false, force: false, timeout: Duration::from_secs(10) };
            unmount(&live, Some(&state_dir), how)?;
        }
        plan.request.fresh = true;
    }
    let mounted = mount_to_stay(&plan, describe)?;
    for text in mounted.notes(&plan) {
        note(&format!("holofs: {text}"));
    }
    let activated = activation.of(&mounted, plan.robot())?;
    activated.temp.into_iter().for_each(Temp::leave);
    Ok(activated.variables)
}
