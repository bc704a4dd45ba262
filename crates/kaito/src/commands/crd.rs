//! `kaito crd`: the definition of the resource.

use kaito_operator::{crd::custom_resource_definition, yaml};

use super::pretty;
use crate::{args::CrdArgs, output::print};

pub fn run(args: &CrdArgs) -> anyhow::Result<()> {
    let definition = custom_resource_definition();
    let text = if args.json { pretty(&definition)? } else { yaml::to_string(&definition)? };
    print(&text)
}
